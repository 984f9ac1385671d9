"""Other systems that segment nuclei, each as three steps: its network, nearly true answers, its post-processing.

No weights of theirs come with this package. Random weights of the true shapes cost what trained ones cost; what is
made into instances are maps that a perfect network would give. With weights the network's own maps are taken.

Nothing is imported before a peer is made, and nothing of this package but for our own rows: a peer may live in an
environment of its own.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray


class Peer(Protocol):
    """A system that was loaded."""

    def network(self, pixels: Array) -> Any:
        """Return what the network says of ``(H, W, 3)`` uint8 pixels, tiles put together."""

    def perfect(self, labels: Array) -> Any:
        """Return what a perfect network would say of nuclei ``(H, W)``."""

    def instances(self, maps: Any) -> Array:
        """Return the label image ``(H, W)`` of what a network says."""


def tiles(pixels: Array, side: int, step: int) -> Array:
    """Return tiles ``(n, side, side, C)`` whose middles of ``step`` pixels cover an image that is mirrored around."""
    before = (side - step) // 2
    rows, columns = (-(-length // step) for length in pixels.shape[:2])
    pads = [
        (before, count * step + side - step - before - length)
        for count, length in zip((rows, columns), pixels.shape[:2], strict=True)
    ]
    around = np.pad(pixels, [*pads, (0, 0)], mode="symmetric")
    places = [(row * step, column * step) for row in range(rows) for column in range(columns)]
    return np.stack([around[y : y + side, x : x + side] for y, x in places])


def directions(labels: Array) -> Array:
    """Return ``(2, H, W)`` float32 horizontal and vertical distance to the centroid, -1 to 1 in every nucleus."""
    from scipy import ndimage

    found = np.zeros((2, *labels.shape), np.float32)
    for index, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        inside = labels[box] == index
        for axis, places in enumerate(np.nonzero(inside)[::-1]):
            away = (places - places.mean()).astype(np.float32)
            found[axis][box][inside] = away / max(np.abs(away).max(), 1.0)
    return found


class CellposeUNet:
    """Cellpose 3 with the U-Net of ``cyto3`` and ``nuclei``, in tiles of 224 px, at the images' own scale."""

    def __init__(self, weights: str | None) -> None:
        from cellpose import core, dynamics
        from cellpose.resnet_torch import CPnet

        self.core, self.dynamics = core, dynamics
        self.net = CPnet([2, 32, 64, 128, 256], 3, 3).eval()
        if weights:
            self.net.load_model(weights)
        self.side = 224

    def network(self, pixels: Array) -> Any:
        """Return flows and logits ``(H, W, 3)``."""
        channels = self.net.nchan if hasattr(self.net, "nchan") else 3
        image = pixels[..., :channels].astype(np.float32) / 255
        return self.core.run_net(self.net, image[None], bsize=self.side)[0][0]

    def perfect(self, labels: Array) -> Any:
        """Return the flows that Cellpose trains on."""
        import torch

        flows = np.asarray(self.dynamics.labels_to_flows([labels], device=torch.device("cpu"))[0])
        return np.stack([5 * flows[2], 5 * flows[3], np.where(labels > 0, 6.0, -6.0)], -1).astype(np.float32)

    def instances(self, maps: Any) -> Array:
        """Follow the flows with the settings of the package."""
        flows = np.ascontiguousarray(maps[..., :2].transpose(2, 0, 1))
        found = self.dynamics.resize_and_compute_masks(flows, maps[..., 2])
        return np.asarray(found[0] if isinstance(found, tuple) else found)


class CellposeSAM(CellposeUNet):
    """Cellpose 4 with SAM's ViT-L on tokens of 8 px, in tiles of 256 px; its own precision is bfloat16."""

    def __init__(self, weights: str | None) -> None:
        import torch
        from cellpose import core, dynamics
        from cellpose.vit import CPSAM

        self.core, self.dynamics = core, dynamics
        self.net = CPSAM(dtype=torch.bfloat16).to(torch.bfloat16).eval()
        if weights:
            self.net.load_model(weights, device=torch.device("cpu"))
        self.side = 256


class StarDist:
    """StarDist's ``2D_versatile_he``: 32 rays on a grid of 2 px, in one tile."""

    def __init__(self, weights: str | None) -> None:
        from stardist import geometry, utils
        from stardist.models import Config2D, StarDist2D

        self.geometry, self.edt = geometry, utils.edt_prob
        self.model = StarDist2D(Config2D(n_rays=32, grid=(2, 2), n_channel_in=3), name=None, basedir=None)
        if weights:
            self.model.keras_model.load_weights(weights)

    def network(self, pixels: Array) -> Any:
        """Return probabilities and distances on the grid."""
        return self.model.predict(pixels.astype(np.float32) / 255, show_tile_progress=False)

    def perfect(self, labels: Array) -> Any:
        """Return what StarDist trains on."""
        distances = self.geometry.star_dist(labels, 32, mode="cpp")[::2, ::2]
        return self.edt(labels)[::2, ::2], np.ascontiguousarray(distances)

    def instances(self, maps: Any) -> Array:
        """Suppress polygons with the published thresholds."""
        size = tuple(2 * side for side in maps[0].shape)
        return np.asarray(
            self.model._instances_from_prediction(size, *maps[:2], prob_thresh=0.69, nms_thresh=0.3)[0]
        )


class InstanSeg:
    """InstanSeg's U-Net for bright field: two coordinates, two features, one seed map, in one tile."""

    def __init__(self, weights: str | None) -> None:
        import torch
        from instanseg.utils.loss.instanseg_loss import InstanSeg as Method
        from instanseg.utils.models.InstanSeg_UNet import InstanSeg_UNet

        self.torch, self.classified = torch, weights is not None
        self.method = Method(n_sigma=2, device="cpu")
        self.net = self.method.initialize_pixel_classifier(InstanSeg_UNet(3, [[2, 2, 1]]), MLP_width=5)
        if weights:
            self.net.load_state_dict(torch.load(weights, weights_only=True))
        self.net.eval()

    def network(self, pixels: Array) -> Any:
        """Return ``(5, H, W)`` maps."""
        pads = [(0, -side % 32) for side in pixels.shape[:2]]
        image = np.pad(pixels, [*pads, (0, 0)], mode="symmetric").transpose(2, 0, 1).astype(np.float32) / 255
        with self.torch.inference_mode():
            return self.net(self.torch.from_numpy(image)[None])[0, :, : pixels.shape[0], : pixels.shape[1]]

    def perfect(self, labels: Array) -> Any:
        """Return seeds that peak in the middle of every nucleus; a coordinate says which nucleus it is."""
        from scipy.ndimage import distance_transform_edt, gaussian_filter

        depth = np.zeros(labels.shape, np.float32)
        for step in (1, -1):  # borders between nuclei count as well
            for axis in (0, 1):
                depth += labels == np.roll(labels, step, axis)
        inner = distance_transform_edt((labels > 0) & (depth == 4))
        maps = np.zeros((5, *labels.shape), np.float32)
        maps[4] = np.where(labels > 0, gaussian_filter(inner, 2) + 1, -8.0)
        if not self.classified:
            self.torch.nn.init.zeros_(self.method.pixel_classifier.fc3.weight)
            self.torch.nn.init.constant_(self.method.pixel_classifier.fc3.bias, 1.0)
        return self.torch.from_numpy(maps)

    def instances(self, maps: Any) -> Array:
        """Classify the pixels about every seed with the settings of the package."""
        with self.torch.inference_mode():
            return self.method.postprocessing(maps.clone(), window_size=128, device="cpu")[0].numpy()


class HoVerNet:
    """HoVer-Net in its fast form: tiles of 256 px that answer for 164 px. The base of its two implementations."""

    net: Any
    batch = 4

    def network(self, pixels: Array) -> Any:
        """Return ``(H, W, 3)``: probability of nuclei, horizontal and vertical distance."""
        import torch

        step = 164
        parts = []
        stack = tiles(pixels, 256, step).transpose(0, 3, 1, 2).astype(np.float32)
        with torch.inference_mode():
            for start in range(0, len(stack), self.batch):
                parts.append(self.forward(torch.from_numpy(stack[start : start + self.batch])))
        columns = -(-pixels.shape[1] // step)
        rows = [np.concatenate(row, 1) for row in np.concatenate(parts).reshape(-1, columns, step, step, 3)]
        return np.concatenate(rows)[: pixels.shape[0], : pixels.shape[1]]

    def forward(self, batch: Any) -> Array:
        """Return ``(B, 164, 164, 3)`` of ``(B, 3, 256, 256)``."""
        raise NotImplementedError

    def perfect(self, labels: Array) -> Any:
        """Return the true maps."""
        return np.concatenate([(labels > 0)[..., None], directions(labels).transpose(1, 2, 0)], -1).astype(
            np.float32
        )


class TIAToolbox(HoVerNet):
    """TIAToolbox's HoVer-Net."""

    def __init__(self, weights: str | None) -> None:
        import torch
        from tiatoolbox.models.architecture.hovernet import HoVerNet as Network

        self.net = Network(mode="fast").eval()
        if weights:
            self.net.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, batch: Any) -> Array:
        """Return the maps of a batch."""
        maps = self.net(batch)
        return _channels_last(maps["np"].softmax(1)[:, 1:], maps["hv"])

    def instances(self, maps: Any) -> Array:
        """Cut by the gradients of the distances."""
        return np.asarray(self.net._proc_np_hv(maps[..., :1], maps[..., 1:]))


class MONAIHoVerNet(HoVerNet):
    """MONAI's HoVer-Net, as in its bundle for nuclei."""

    def __init__(self, weights: str | None) -> None:
        import torch
        from monai.apps.pathology.transforms.post.array import HoVerNetInstanceMapPostProcessing
        from monai.networks.nets import HoVerNet as Network

        self.net = Network(mode=Network.Mode.FAST, in_channels=3, out_classes=0).eval()
        self.cut = HoVerNetInstanceMapPostProcessing(activation=lambda maps: maps, mask_threshold=0.5)
        if weights:
            self.net.load_state_dict(torch.load(weights, weights_only=True))

    def forward(self, batch: Any) -> Array:
        """Return the maps of a batch."""
        maps = self.net(batch / 255)
        return _channels_last(maps["nucleus_prediction"].softmax(1)[:, 1:], maps["horizontal_vertical"])

    def instances(self, maps: Any) -> Array:
        """Cut with MONAI's transform."""
        import torch

        channels = torch.from_numpy(np.ascontiguousarray(maps.transpose(2, 0, 1)))
        return np.asarray(self.cut(channels[:1], channels[1:])[1])[0]


def _channels_last(*maps: Any) -> Array:
    import torch

    return torch.cat(maps, 1).permute(0, 2, 3, 1).numpy()


class SegmentAnything:
    """The stock automatic mode of SAM with ViT-B: 32 x 32 points on one image of 1024 px."""

    def __init__(self, weights: str | None) -> None:
        import torch
        from segment_anything import SamAutomaticMaskGenerator, sam_model_registry

        self.torch = torch
        self.generator = SamAutomaticMaskGenerator(sam_model_registry["vit_b"](weights).eval())
        self.decode = self.generator.predictor.predict_torch

    def network(self, pixels: Array) -> Any:
        """Encode, and decode all points as the generator does; the masks themselves are dropped."""
        predictor, size = self.generator.predictor, pixels.shape[:2]
        predictor.set_image(pixels)
        points = predictor.transform.apply_coords(self.generator.point_grids[0] * [size[::-1]], size)
        for chosen in self.torch.from_numpy(points)[:, None].split(self.generator.points_per_batch):
            ones = self.torch.ones(len(chosen), 1, dtype=self.torch.int)
            self.decode(chosen, ones, multimask_output=True, return_logits=True)
        return pixels

    def perfect(self, labels: Array) -> Any:
        """Return the nuclei themselves, of which the generator gets the mask under every point."""
        return labels

    def instances(self, maps: Any) -> Array:
        """Run the generator where the decoder answers with the nucleus under each point."""
        labels = self.torch.from_numpy(np.asarray(maps))
        predictor = self.generator.predictor
        predictor.features, predictor.is_image_set = self.torch.zeros(1), True
        size = tuple(labels.shape)
        predictor.original_size = size
        scale = 1024 / max(size)

        def answer(points: Any, *_: Any, **__: Any) -> tuple[Any, Any, None]:
            x, y = (points[:, 0] / scale).long().clamp(min=0).unbind(1)
            ids = labels[y.clamp(max=size[0] - 1), x.clamp(max=size[1] - 1)]
            masks = self.torch.where((labels == ids[:, None, None]) & (ids > 0)[:, None, None], 8.0, -8.0)
            quality = self.torch.where(ids > 0, 0.95, 0.0)[:, None].expand(-1, 3)
            return masks[:, None].expand(-1, 3, -1, -1), quality, None

        predictor.set_image, predictor.predict_torch = (lambda image: None), answer
        found = np.zeros(size, np.int32)
        for index, one in enumerate(self.generator.generate(np.zeros((*size, 3), np.uint8)), start=1):
            found[one["segmentation"]] = index
        return found


class UNSAM:
    """Our UN-SAM with the compact SAM, at the image's own scale like the others."""

    def __init__(self, weights: str | None, precision: str = "fp32") -> None:
        import nucsam_monai

        segmenter = nucsam_monai.load("unsam", weights, device="cpu", precision=precision, diameter=None)
        self.pipeline = segmenter._pipeline({})

    def network(self, pixels: Array) -> Any:
        """Return the maps ``(1, 2, H, W)``."""
        return self.pipeline.infer(pixels, None)

    def perfect(self, labels: Array) -> Any:
        """Return the true foreground and distances."""
        import torch

        from nucsam_monai.transforms import nucleus_distance

        return torch.from_numpy(np.stack([labels > 0, nucleus_distance(labels)]).astype(np.float32))[None]

    def instances(self, maps: Any) -> Array:
        """Cut as the shipped weights' settings say."""
        return np.asarray(self.pipeline.nuclei(maps).instances)


PEERS: dict[str, tuple[Callable[[str | None], Any], str]] = {
    "unsam": (UNSAM, "pip install nucsam-monai"),
    "unsam_bf16": (partial(UNSAM, precision="bf16"), "pip install nucsam-monai"),
    "cellpose3": (CellposeUNet, 'pip install "cellpose<4"'),
    "cellpose4": (CellposeSAM, "pip install cellpose"),
    "stardist": (StarDist, "pip install stardist tensorflow"),
    "instanseg": (InstanSeg, "pip install instanseg-torch"),
    "tiatoolbox": (TIAToolbox, "pip install tiatoolbox"),
    "monai_hovernet": (MONAIHoVerNet, "pip install monai scikit-image"),
    "segment_anything": (SegmentAnything, "pip install segment-anything torch torchvision"),
}
"""By name how a system is made from the path of its weights, and what installs it."""


def read(path: Path) -> Array:
    """Return the pixels of a picture ``(H, W, 3)`` uint8."""
    from PIL import Image

    return np.asarray(Image.open(path).convert("RGB"))
