"""Augment images and their instance maps like the variation of microscopes, stains and cameras."""

import hashlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Literal

import cv2
import numpy as np
import torch
from monai.config import KeysCollection
from monai.transforms import Compose, MapTransform, Randomizable, RandomizableTransform, Transform
from monai.utils import convert_to_dst_type, convert_to_numpy, convert_to_tensor
from numpy.typing import NDArray
from skimage.color import hed_from_rgb, rgb_from_hed
from skimage.segmentation import slic
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.transforms.targets import NucleusDistanced
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.instances import InstanceRule
from nucsam_monai.utils.names import Fit, check_fit
from nucsam_monai.utils.resizing import resize_labels

Interpolation = Literal["image", "map", "labels"]
"""How a crop is resized: ``image`` averages where it shrinks, ``map`` interpolates, ``labels`` keeps ids."""

_OPTICAL_DENSITY = -np.log(np.maximum(np.arange(256), 1) / 255).astype(np.float32)
_HED_FROM_RGB, _RGB_FROM_HED = hed_from_rgb.astype(np.float32), rgb_from_hed.astype(np.float32)

_ENDLESS = 1 << 31


def microscopy_augmentation(
    size_px: int,
    zoom: tuple[float, float] = (0.6, 1.6),
    instances: InstanceRule = "components",
    fit: Fit = "tile",
) -> list[MapTransform]:
    """Return random crops and colour changes for images of any microscope, stain and magnification.

    Args:
        size_px: side length of a crop.
        zoom: smallest and largest magnification of a crop.
        instances: for ``distance`` the map of each whole image is cropped with it, so that nuclei at the border of a
            crop keep their depth.
        fit: meaning of magnification 1, see :class:`RandZoomCropd`.
    """
    interpolation: dict[str, Interpolation] = {"image": "image", "instances": "labels"}
    maps: list[MapTransform] = []
    if instances == "distance":
        maps = [NucleusDistanced(output_key="distance")]
        interpolation["distance"] = "map"
    return [
        *maps,
        RandZoomCropd(tuple(interpolation), size_px, tuple(interpolation.values()), zoom, fit=fit),
        RandStainJitterd("image"),
        RandColorJitterd("image", prob=0.8),
        RandDegraded("image"),
    ]


class RandZoomCropd(Randomizable, MapTransform):
    """Crop a random square from an image at a random magnification, rotation and reflection.

    Images smaller than the crop are padded by reflection. All keys are resized with aligned pixel centres, so that
    labels stay aligned with their image.

    Args:
        keys: ``(C, H, W)`` arrays of one size.
        size_px: side length of the result.
        interpolation: one :data:`Interpolation` per key.
        zoom: smallest and largest magnification, drawn log-uniformly.
        prob: fraction of the crops that are magnified; the others keep their scale.
        fit: meaning of magnification 1: ``tile``, the image's own pixels; ``resize``, the whole image in the square.

    Raises:
        ConfigurationError: ``fit`` is unknown.
    """

    def __init__(
        self,
        keys: KeysCollection,
        size_px: int,
        interpolation: Sequence[Interpolation],
        zoom: tuple[float, float] = (0.6, 1.6),
        prob: float = 0.7,
        fit: Fit = "tile",
    ) -> None:
        MapTransform.__init__(self, keys)
        check_fit(fit)
        self.fit = fit
        self.size_px = size_px
        self.interpolation = tuple(interpolation)
        self.zoom = zoom
        self.prob = prob

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item with ``(C, size_px, size_px)`` tensors."""
        item = dict(data)
        size = item[self.keys[0]].shape[-2:]
        zoomed = self.R.random() < self.prob
        zoom = float(np.exp(self.R.uniform(*np.log(self.zoom)))) if zoomed else 1.0
        whole = size if self.fit == "resize" else (self.size_px, self.size_px)
        sides = [max(1, round(length / zoom)) for length in whole]
        y, x = (
            int(self.R.randint(0, max(1, length - side + 1)))
            for length, side in zip(size, sides, strict=True)
        )
        turns, mirrored = int(self.R.randint(4)), bool(self.R.randint(2))
        for key, interpolation in zip(self.keys, self.interpolation, strict=True):
            window = convert_to_numpy(item[key][:, y : y + sides[0], x : x + sides[1]])
            missing = [(0, 0), *((0, side - n) for side, n in zip(sides, window.shape[1:], strict=True))]
            window = np.pad(window, missing, mode="symmetric") if np.any(missing) else window
            window = np.rot90(_resized(window, self.size_px, interpolation), turns, axes=(1, 2))
            item[key] = torch.from_numpy(np.ascontiguousarray(window[:, :, ::-1] if mirrored else window))
        return item


def _resized(window: NDArray[Any], size_px: int, interpolation: Interpolation) -> NDArray[Any]:
    """Resize ``(C, h, w)`` to ``(C, size_px, size_px)``."""
    if window.shape[1:] == (size_px, size_px):
        return window
    if interpolation == "labels":
        return resize_labels(window, (size_px, size_px))
    how = cv2.INTER_AREA if interpolation == "image" and min(window.shape[1:]) > size_px else cv2.INTER_LINEAR
    return np.stack([cv2.resize(channel, (size_px, size_px), interpolation=how) for channel in window])


class RandStainJitterd(RandomizableTransform, MapTransform):
    """Vary the amounts of haematoxylin, eosin and DAB in bright-field images.

    The stains are separated as in Ruifrok and Johnston (2001). Images with a dark background are not changed.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        prob: fraction of the bright images that are changed.
        strength: largest relative change of a stain's amount.
        shift: largest change added to it, in optical density.
    """

    def __init__(
        self, keys: KeysCollection, prob: float = 0.5, strength: float = 0.3, shift: float = 0.03
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.strength = strength
        self.shift = shift

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images stay uint8."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        amount = 1 + self.R.uniform(-self.strength, self.strength, size=3).astype(np.float32)
        shift = self.R.uniform(-self.shift, self.shift, size=3).astype(np.float32)
        for key in self.key_iterator(item):
            image = convert_to_numpy(item[key])
            if image.mean() > 100:
                item[key] = torch.from_numpy(_restained(image, amount, shift))
        return item


def _restained(image: NDArray[np.uint8], amount: NDArray[Any], shift: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale and shift the stains of ``(3, H, W)``; one matrix does both ways and the scaling."""
    change = _HED_FROM_RGB @ np.diag(amount) @ _RGB_FROM_HED
    density = change.T @ _OPTICAL_DENSITY[image.reshape(3, -1)] + (shift @ _RGB_FROM_HED)[:, None]
    return np.clip(255 * np.exp(-density), 0, 255).round().astype(np.uint8).reshape(image.shape)


class RandDegraded(Randomizable, MapTransform):
    """Remove colour and sharpness, invert, and add noise and compression, each with a probability.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        grey: fraction of the images that lose their colour.
        inverted: fraction that are inverted.
        blurred: fraction that are smoothed by a Gaussian of up to 1.5 px.
        noisy: fraction that get Gaussian noise with a standard deviation of up to 12.
        compressed: fraction that are compressed as JPEG with a quality from 30 to 90.
    """

    def __init__(
        self,
        keys: KeysCollection,
        grey: float = 0.15,
        inverted: float = 0.05,
        blurred: float = 0.15,
        noisy: float = 0.2,
        compressed: float = 0.1,
    ) -> None:
        MapTransform.__init__(self, keys)
        self.grey = grey
        self.inverted = inverted
        self.blurred = blurred
        self.noisy = noisy
        self.compressed = compressed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are uint8."""
        item = dict(data)
        for key in self.key_iterator(item):
            image = np.ascontiguousarray(convert_to_numpy(item[key]).transpose(1, 2, 0)).astype(np.uint8)
            item[key] = torch.from_numpy(np.ascontiguousarray(self._degraded(image).transpose(2, 0, 1)))
        return item

    def _degraded(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        grey, inverted, blurred, noisy, compressed = self.R.random(5)
        if grey < self.grey:
            image = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        if inverted < self.inverted:
            image = 255 - image
        if blurred < self.blurred:
            image = cv2.GaussianBlur(image, (0, 0), self.R.uniform(0.3, 1.5))
        if noisy < self.noisy:
            noise = self.R.normal(0, self.R.uniform(0, 12), size=(*image.shape[:2], 1))
            image = np.clip(image + noise, 0, 255).astype(np.uint8)
        if compressed < self.compressed:
            _, file = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(self.R.randint(30, 91))])
            image = np.asarray(cv2.imdecode(file, cv2.IMREAD_COLOR), dtype=np.uint8)
        return image


class RandColorJitterd(RandomizableTransform, MapTransform):
    """Change brightness, contrast and the balance of the colours.

    The result has whole numbers in 0..255 like the 8-bit image it came from.

    Args:
        keys: ``(3, H, W)`` RGB images with values in 0..255.
        prob: fraction of the images that are changed.
        brightness: largest shift, as a share of 255.
        contrast: largest relative change of the contrast around the image's mean.
        balance: largest relative change of a single colour channel, as differing stains give.
    """

    def __init__(
        self,
        keys: KeysCollection,
        prob: float = 0.8,
        brightness: float = 0.1,
        contrast: float = 0.3,
        balance: float = 0.1,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.ranges = {"brightness": brightness, "contrast": contrast, "balance": balance}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are float32 where they were changed."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        shift = 255.0 * self._draw("brightness")
        contrast = 1.0 + self._draw("contrast")
        balance = torch.tensor([1.0 + self._draw("balance") for _ in range(3)]).view(3, 1, 1)
        for key in self.key_iterator(item):
            image = convert_to_tensor(item[key], track_meta=False).float()
            mean = image.mean()
            changed = (((image - mean) * contrast + mean + shift) * balance).clamp_(0.0, 255.0).round_()
            item[key] = convert_to_dst_type(changed, item[key], dtype=torch.float32)[0]
        return item

    def _draw(self, name: str) -> float:
        return float(self.R.uniform(-self.ranges[name], self.ranges[name]))


class RandSuperpixelsd(RandomizableTransform, MapTransform):
    """Give a random share of an image's superpixels their mean colour (PromptNucSeg, training of the segmenter).

    The superpixels are those of SLIC (Achanta et al., 2012), found in a reduced copy of the image; those that are
    not replaced keep their full detail. Instance maps stay as they are.

    Args:
        keys: ``(C, H, W)`` images with values from 0 to 255.
        prob: fraction of the images that are changed.
        replace_prob: fraction of an image's superpixels that are replaced.
        n_segments: approximate number of superpixels.
        max_side_px: longest side of the reduced copy; the time grows with its area.

    Raises:
        ConfigurationError: a fraction outside 0 to 1, or a number below 1.
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        prob: float = 0.1,
        replace_prob: float = 0.1,
        n_segments: int = 200,
        max_side_px: int = 128,
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        if not 0 <= replace_prob <= 1 or n_segments < 1 or max_side_px < 1:
            raise ConfigurationError(
                "superpixels: expected replace_prob from 0 to 1, n_segments and max_side_px from 1 on, found "
                f"{replace_prob}, {n_segments} and {max_side_px}."
            )
        self.replace_prob = replace_prob
        self.n_segments = n_segments
        self.max_side_px = max_side_px

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are float32 where they were changed."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        for key in self.key_iterator(item):
            image = convert_to_numpy(item[key]).astype(np.float32)
            segments = superpixels(image, self.n_segments, self.max_side_px)
            replaced = self.R.random_sample(int(segments.max()) + 1) < self.replace_prob
            flat = flatten_segments(image, segments, replaced)
            item[key] = convert_to_dst_type(flat, item[key], dtype=torch.float32)[0]
        return item


def superpixels(image: NDArray[np.float32], n_segments: int, max_side_px: int) -> NDArray[np.int64]:
    """Return the superpixel ``(H, W)``, from 0 on, of every pixel of a ``(C, H, W)`` image from 0 to 255."""
    height, width = image.shape[1:]
    factor = min(1.0, max_side_px / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    small = cv2.resize(np.ascontiguousarray(image.transpose(1, 2, 0)), size, interpolation=cv2.INTER_AREA)
    small = small.reshape(size[1], size[0], -1) / 255
    segments = slic(small, n_segments, start_label=0, channel_axis=-1, convert2lab=small.shape[-1] == 3)
    return cv2.resize(segments.astype(np.int32), (width, height), interpolation=cv2.INTER_NEAREST).astype(
        np.int64
    )


def flatten_segments(
    image: NDArray[np.float32], segments: NDArray[np.int64], replaced: NDArray[np.bool_]
) -> NDArray[np.float32]:
    """Return the ``(C, H, W)`` image with the mean colour in every segment that is to be replaced.

    Args:
        image: is not changed.
        segments: ``(H, W)`` numbers from 0 on.
        replaced: ``(n,)``, by number of the segment.

    Example:
        >>> image = np.array([[[0.0, 4.0, 1.0, 3.0]]], dtype=np.float32)
        >>> flatten_segments(image, np.array([[0, 0, 1, 1]]), np.array([True, False]))
        array([[[2., 2., 1., 3.]]], dtype=float32)
    """
    labels = segments.ravel()
    sizes = np.maximum(np.bincount(labels, minlength=len(replaced)), 1)
    means = np.stack([np.bincount(labels, plane.ravel(), minlength=len(replaced)) / sizes for plane in image])
    return np.where(replaced[segments], means[:, segments], image).astype(np.float32)


class RandZoomBlurd(RandomizableTransform, MapTransform):
    """Average an image with magnified versions of itself.

    Args:
        keys: ``(C, H, W)`` images.
        prob: fraction of the images that are changed.
        max_factor: upper bound of the largest magnification, which is drawn from 1 to this.
        step: difference of the magnifications.
    """

    def __init__(
        self, keys: KeysCollection = "image", prob: float = 0.1, max_factor: float = 1.05, step: float = 0.01
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.max_factor = max_factor
        self.step = step

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; its images are float32 where they were changed."""
        item = dict(data)
        self.randomize(None)
        if not self._do_transform:
            return item
        largest = self.R.uniform(1.0, self.max_factor)
        factors = torch.arange(1.0, largest + 1e-9, self.step, dtype=torch.float64).float()
        for key in self.key_iterator(item):
            image = convert_to_tensor(item[key], track_meta=False).float()
            item[key] = convert_to_dst_type(zoom_blur(image, factors), item[key], dtype=torch.float32)[0]
        return item


def zoom_blur(image: Tensor, factors: Tensor) -> Tensor:
    """Return the mean of ``(C, H, W)`` images magnified about their centre by each of the ``(n,)`` factors."""
    matrices = torch.zeros(len(factors), 2, 3)
    matrices[:, 0, 0] = matrices[:, 1, 1] = 1 / factors
    grid = F.affine_grid(matrices, [len(factors), *image.shape], align_corners=False)
    batch = image.expand(len(factors), -1, -1, -1)
    return F.grid_sample(batch, grid, padding_mode="border", align_corners=False).mean(dim=0)


class RandGridShuffled(RandomizableTransform, MapTransform):
    """Cut image and instances into ``n x n`` cells of equal size and shuffle them.

    Parts of a nucleus in different cells become separate nuclei with the class of the whole nucleus; their ids are
    added to the item's ``classes_key`` if there are classes. Remaining rows and columns at the bottom and right are
    not moved. An image with fewer pixels than cells along a side is not changed.

    Args:
        keys: ``(C, H, W)`` images of one size that move together.
        instances_key: which of them is the instance map.
        prob: fraction of the items that are changed.
        grid: n.
        classes_key: key of ``{instance id: class id}``.
    """

    def __init__(
        self,
        keys: KeysCollection = ("image", "instances"),
        instances_key: str = "instances",
        prob: float = 0.5,
        grid: int = 4,
        classes_key: str = "classes",
    ) -> None:
        MapTransform.__init__(self, keys)
        RandomizableTransform.__init__(self, prob)
        self.instances_key = instances_key
        self.grid = grid
        self.classes_key = classes_key

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the item; the input is not modified."""
        item = dict(data)
        self.randomize(None)
        height, width = item[self.instances_key].shape[-2:]
        if not self._do_transform or min(height, width) < self.grid:
            return item
        order = torch.from_numpy(self.R.permutation(self.grid**2))
        for key in self.key_iterator(item):
            pixels = convert_to_tensor(item[key], track_meta=False)
            if key == self.instances_key:
                pixels, wholes = _one_id_per_part(pixels, self.grid)
                classes = item.get(self.classes_key)
                if classes is not None:
                    item[self.classes_key] = {
                        part: classes[whole] for part, whole in wholes.items() if whole in classes
                    }
            item[key] = convert_to_dst_type(shuffle_cells(pixels, order, self.grid), item[key])[0]
        return item


def shuffle_cells(pixels: Tensor, order: Tensor, grid: int) -> Tensor:
    """Return ``(C, H, W)`` pixels whose cell k is the cell ``order[k]`` of the input, cells counted by rows.

    Example:
        >>> shuffle_cells(torch.tensor([[[1, 2], [3, 4]]]), torch.tensor([3, 0, 1, 2]), grid=2)
        tensor([[[4, 1],
                 [2, 3]]])
    """
    channels, height, width = pixels.shape
    h, w = height // grid, width // grid
    cells = pixels[:, : grid * h, : grid * w].reshape(channels, grid, h, grid, w).permute(1, 3, 0, 2, 4)
    moved = cells.flatten(0, 1)[order].unflatten(0, (grid, grid))
    shuffled = pixels.clone()
    shuffled[:, : grid * h, : grid * w] = moved.permute(2, 0, 3, 1, 4).reshape(channels, grid * h, grid * w)
    return shuffled


def _one_id_per_part(instances: Tensor, grid: int) -> tuple[Tensor, dict[int, int]]:
    """Renumber the parts of nuclei in each cell of a ``(1, H, W)`` map; return ``{new id: old id}`` too."""
    height, width = instances.shape[-2:]
    row = np.minimum(np.arange(height) // (height // grid), grid)
    column = np.minimum(np.arange(width) // (width // grid), grid)
    cell = row[:, None] * (grid + 1) + column
    ids = instances[0].round().to(torch.int64).numpy()
    parts, numbers = np.unique(ids[ids > 0] * (grid + 1) ** 2 + cell[ids > 0], return_inverse=True)
    renumbered = np.zeros_like(ids)
    renumbered[ids > 0] = numbers + 1
    wholes = (parts // (grid + 1) ** 2).tolist()
    return torch.from_numpy(renumbered)[None].to(instances.dtype), dict(enumerate(wholes, start=1))


class AugmentedCopiesd(Randomizable, Transform):
    """Return one of a fixed number of augmented copies of an item, chosen at random each time.

    Copy k of an item is identical in every epoch, process and run, so that a frozen encoder has to process it only once
    (:class:`~nucsam_monai.networks.sam.EmbeddingCache`). Random transforms after this one would prevent that. eU-Net3+
    uses 50 copies of an image, 100 for CryoNuSeg.

    Args:
        transforms: dictionary transforms that take all their randomness from MONAI's ``set_random_state``.
        copies: number of augmented copies of each item; None draws from so many that none repeats.
        id_key: the key that identifies the items.
        seed: another seed makes other copies.

    Raises:
        ConfigurationError: fewer than one copy.

    Example:
        >>> import torch
        >>> from monai.transforms import RandGaussianNoised
        >>> copies = AugmentedCopiesd([RandGaussianNoised("image", prob=1.0)], copies=3)
        >>> item = {"id": "a", "image": torch.zeros(1, 2, 2)}
        >>> len({float(copies(item)["image"].sum()) for _ in range(50)})
        3
    """

    def __init__(
        self,
        transforms: Sequence[Callable],
        copies: int | None = 50,
        id_key: str = "id",
        seed: int = 0,
    ) -> None:
        super().__init__()
        if copies is not None and copies < 1:
            raise ConfigurationError(f"augmented copies {copies}: expected 1 or more, or None.")
        self.augmentation = Compose(transforms)
        self.copies = copies
        self.id_key = id_key
        self.seed = seed

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Return the chosen copy of the item; the item itself is not modified."""
        return self.copy_of(data, int(self.R.randint(self.copies or _ENDLESS)))

    def copy_of(self, data: Mapping[Hashable, Any], copy: int) -> dict[Hashable, Any]:
        """Return copy number ``copy`` of the item, from 0 on."""
        name = f"{self.seed}\0{data[self.id_key]}\0{copy}".encode()
        seed = int.from_bytes(hashlib.sha256(name).digest()[:4], "big")
        self.augmentation.set_random_state(seed=seed)
        return self.augmentation(dict(data))
