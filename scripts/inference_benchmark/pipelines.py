"""Take one image from file to files, as the inference of each bundle does it, stage by stage."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import list_data_collate
from numpy.typing import NDArray
from scipy.spatial import KDTree
from torch import Tensor

from inference_benchmark import STAGES
from inference_benchmark.clock import StageClock
from inference_benchmark.scene import BenchmarkImage
from nucsam_monai.inferers import DetectedPoints, select_points
from nucsam_monai.io import write_prediction
from nucsam_monai.networks import MaskPrediction, NucleusPrompts, PrompterOutput
from nucsam_monai.networks.sam import SAM, DecodedMasks, ImageEncoder
from nucsam_monai.segmenter import Segmenter, read_inference_config
from nucsam_monai.utils.paths import bundle_root
from nucsam_monai.utils.prediction import NucleiPrediction

TILE_PX = 256
_STAND_IN = "stand-in"


class Pipeline:
    """Run the inference of one method with random weights, with outputs replaced by nearly correct ones.

    Random weights cost what trained ones cost, but say nothing, and merging nothing costs nothing. So every network
    runs as it is, and what is merged and written are answers as a trained one would give them: the centroids of the
    truth, discs of the nuclei's sizes, or the true foreground, cut by the watershed. Making these up counts for no
    stage.

    Args:
        method: name of a bundle that can infer.
        variant: of SAM.
        image: what is segmented.
        output_dir: where the results are written.
        precision: of the networks.
        device: that they run on.
        options: values of other keys of ``inference.json``; keys that the bundle lacks are ignored.
    """

    def __init__(
        self,
        method: str,
        variant: str,
        image: BenchmarkImage,
        output_dir: Path,
        precision: str,
        device: torch.device,
        options: Mapping[str, Any],
    ) -> None:
        self.image = image
        self.output_dir = output_dir
        self.device = device
        folder = Path(bundle_root(method))
        config = read_inference_config(folder)
        wanted = {
            "sam_variant": variant,
            "precision": precision,
            "backbone": "compact" if variant == "vit_tiny" else "convnext_small",
            "image_size": TILE_PX,
            "overlap_px": TILE_PX // 4,
            "instances": "watershed",
            **options,
        }
        settings = {key: value for key, value in wanted.items() if key in config}
        # There are no such weights: the network is the bundle's default one, at random.
        self.bundle = Segmenter(folder, output_dir / "none", str(device), settings)
        self.is_prompted = "find_points" in config
        self.network = self.bundle.value("network").eval()
        self.clock = StageClock(device)
        encoder = next((part for part in self.network.modules() if isinstance(part, ImageEncoder)), None)
        if encoder is not None:
            # Not the encoder itself: caches run its parts one by one.
            for part in (encoder.trunk, encoder.patch_embed, *encoder.blocks, encoder.neck, encoder.fine):
                if part is not None:
                    self.clock.watch(part, "encoder")

    def run(self) -> tuple[dict[str, float], int]:
        """Segment the image once; return the seconds of every stage, and how many nuclei were written."""
        self.clock.seconds.clear()
        with self.clock.stage("read"):
            item = self.bundle.value("preprocessing")({"image": str(self.image.path), "id": "image"})
            batch = list_data_collate([item])
        prediction = self._prompted(batch) if self.is_prompted else self._semantic(batch)
        with self.clock.stage("write"):
            pixels = np.asarray(batch["pixels"][0]).transpose(1, 2, 0)
            write_prediction(prediction, pixels, self.output_dir, self.image.path.stem)
        return {stage: self.clock.seconds[stage] for stage in STAGES}, len(prediction)

    def _prompted(self, batch: dict[str, Any]) -> NucleiPrediction:
        segmenter = NearlyTrueSegmenter(self.network, self.image, self.clock)
        find = partial(self._find, self.bundle.value("find_points"))
        with self.clock.stage("merge"):
            return self.bundle.value("inferer")(batch["image"].to(self.device), segmenter, find)

    @torch.no_grad()
    def _find(self, finder: Any, image: Tensor) -> DetectedPoints:
        """Run the prompter, and select from anchors that have moved to the nuclei."""
        with self.clock.stage("prompter"):
            output = finder.prompter(image, with_mask=finder.mask_filter)
        with self.clock.stage(_STAND_IN):
            output = anchors_on_nuclei(output, self.image)
        with self.clock.stage("prompter"):
            size = (image.shape[-2], image.shape[-1])
            return select_points(output, size, mask_filter=finder.mask_filter, radius=finder.radius_px)

    @torch.no_grad()
    def _semantic(self, batch: dict[str, Any]) -> NucleiPrediction:
        with self.clock.stage("decoder"):
            self.bundle.value("inferer")(batch["image"].to(self.device), self.network)
        with self.clock.stage(_STAND_IN):
            item = {"pred": self.image.foreground()}
        with self.clock.stage("merge"):
            return self.bundle.value("postprocessing")(item)["pred"]


class NearlyTrueSegmenter:
    """Replace the masks of a prompted network by discs of the nuclei's sizes about the prompts."""

    def __init__(self, network: Any, image: BenchmarkImage, clock: StageClock) -> None:
        self.network = network
        self.clock = clock
        self.radii_px = float(np.median(image.radii_px))
        for sam in (part for part in network.modules() if isinstance(part, SAM)):
            sam.decode = partial(self._coarse, sam.decode)  # CFR-SAM refines around these masks

    def _coarse(
        self, decode: Callable[..., DecodedMasks], features: Any, points: Tensor, *others: Any, **options: Any
    ) -> DecodedMasks:
        found = decode(features, points, *others, **options)
        with self.clock.stage(_STAND_IN):
            return found._replace(logits=discs(points[:, 0], self.radii_px, found.logits))

    def encode(self, image: Tensor) -> Tensor:
        """Encode tiles."""
        with self.clock.stage("decoder"):  # whatever of it is not SAM's encoder, as in CFR-SAM
            return self.network.encode(image)

    def decode(self, embedding: Any, prompts: NucleusPrompts) -> MaskPrediction:
        """Decode prompts, and answer with discs."""
        with self.clock.stage("decoder"):
            answer = self.network.decode(embedding, prompts)
        with self.clock.stage(_STAND_IN):
            return MaskPrediction(
                discs(prompts.points[:, 0], self.radii_px, answer.logits), torch.full_like(answer.iou, 0.9)
            )


def discs(points: Tensor, radius_px: float, like: Tensor, tile_px: int = TILE_PX) -> Tensor:
    """Return logits ``(N, 1, h, w)`` that are positive within a radius of points ``(N, 2)`` of a tile."""
    cell = tile_px / like.shape[-1]
    centres = (torch.arange(like.shape[-1], device=like.device) + 0.5) * cell - 0.5
    x, y = (points[:, axis, None] - centres for axis in (0, 1))
    distance = (x[:, None, :] ** 2 + y[:, :, None] ** 2).sqrt()
    return (radius_px - distance)[:, None].to(like.dtype)


def anchors_on_nuclei(output: PrompterOutput, image: BenchmarkImage) -> PrompterOutput:
    """Return the output of a prompter whose anchors nearest to a nucleus have found it.

    Two anchors find each nucleus, as after a training, so that there are duplicates to suppress.
    """
    points, logits = output.points[0].clone(), torch.zeros_like(output.class_logits[0])
    _, nearest = KDTree(np.nan_to_num(points.cpu().numpy())).query(image.points, k=2)
    rows: NDArray[np.int64] = np.asarray(nearest).T.ravel()
    targets = torch.from_numpy(np.concatenate([image.points, image.points + 1])).to(points)
    logits[:, -1] = 4.0
    points[rows] = targets
    logits[rows] = torch.tensor([8.0] + [0.0] * (logits.shape[1] - 1)).to(logits)
    mask = None if output.mask_logits is None else torch.ones_like(output.mask_logits)
    return PrompterOutput(points[None], logits[None], mask)
