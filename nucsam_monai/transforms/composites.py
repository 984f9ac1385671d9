"""Bundle the transforms that several configurations share, each list under one name."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from monai.transforms import (
    CenterSpatialCropd,
    Compose,
    ComputeHoVerMapsd,
    ConcatItemsd,
    CopyItemsd,
    DeleteItemsd,
    EnsureChannelFirstd,
    Lambdad,
    LoadImaged,
    RandAffined,
    RandFlipd,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandRotate90d,
    RandSimulateLowResolutiond,
    RandSpatialCropd,
    ScaleIntensityRanged,
    SelectItemsd,
    SpatialPadd,
)

from nucsam_monai.io import whole_image_px
from nucsam_monai.transforms.augmentation import (
    RandColorJitterd,
    RandGridShuffled,
    RandSuperpixelsd,
    RandZoomBlurd,
)
from nucsam_monai.transforms.instances import HoVerNetInstancesd, ProbabilityToInstancesd
from nucsam_monai.transforms.prompts import ExpertPointsd, NucleusPointsd
from nucsam_monai.transforms.reader import NormalizeSAMd, NucleiImageReader, PixelStd
from nucsam_monai.transforms.resizing import RandZoomd, Resized
from nucsam_monai.transforms.targets import DistanceTargetd, ForegroundMaskd, NucleusSizesd
from nucsam_monai.utils.instances import InstanceRule
from nucsam_monai.utils.names import Fit, check_fit

Transform = Callable[[Any], Any]
Steps = list[Transform]

_BOTH = ["image", "instances"]
_BILINEAR_AND_IDS = ["bilinear", "nearest"]


def chain(transforms: Iterable[Transform | Iterable[Any] | None]) -> Compose:
    """Join transforms, lists of transforms and lists of lists into one; None is left out.

    Example:
        >>> len(chain([abs, [abs, None], []]).transforms)
        2
    """

    def flat(part: Any) -> Steps:
        if isinstance(part, (list, tuple)):
            return [step for item in part for step in flat(item)]
        return [] if part is None else [part]

    return Compose(flat(list(transforms)))


def load_nuclei(
    class_names: Sequence[str] | None = None, read_classes: Callable[[Any], Any] | None = None
) -> Steps:
    """Read the image ``(3, H, W)`` and the label map ``(1, H, W)`` of an item of a dataset.

    Args:
        class_names: names of the classes; with one name, classes are not read. None for
            methods without classes, or with classes in some domains.
        read_classes: reads the classes' file.

    A ``CacheDataset`` keeps what these steps return, whatever comes behind them: an image of 256 px and 8 bits is 64
    times smaller than the same one stretched to 1024 px and normalised.
    """
    steps: Steps = [
        CopyItemsd("image", names="image_path"),
        LoadImaged("image", reader=NucleiImageReader, dtype=torch.uint8, image_only=True),
        LoadImaged(
            "instances", reader="PILReader", reverse_indexing=False, dtype=torch.int32, image_only=True
        ),
        EnsureChannelFirstd("image", channel_dim=-1),
        EnsureChannelFirstd("instances", channel_dim="no_channel"),
    ]
    if read_classes is not None and (class_names is None or len(class_names) > 1):
        steps.append(Lambdad("classes", func=read_classes, allow_missing_keys=True))
    elif class_names is not None:
        steps.append(DeleteItemsd("classes"))
    return [*steps, end_of_cache]


def end_of_cache(item: Mapping[Any, Any]) -> Mapping[Any, Any]:
    """Return the item; a ``CacheDataset`` keeps what comes before a step that is not one of MONAI's transforms."""
    return item


def read_image_alone(
    pixel_std: PixelStd = "sam",
    points: str | None = None,
    items: Sequence[Mapping[str, Any]] = (),
    intensity_range: Sequence[float] | None = None,
    max_pixels: int | None = None,
    strips_above_mpx: float | None = None,
) -> Compose:
    """Read an image that is to be segmented: ``image`` for the network, ``pixels`` for the results.

    Args:
        pixel_std: constants of the normalisation, see :class:`NormalizeSAMd`.
        points: file of an expert's points, see :class:`ExpertPointsd`.
        items: all images of the workflow, among which the file's names are looked up.
        intensity_range: pixel values that become black and white, see :class:`NucleiImageReader`.
        max_pixels: larger images are not read here, nor are those that
        strips_above_mpx: leaves to be segmented in parts, see :func:`nucsam_monai.io.whole_image_px`.
    """
    limit = max_pixels if strips_above_mpx is None else whole_image_px(strips_above_mpx, max_pixels)
    reader = NucleiImageReader(limit, intensity_range)
    return chain(
        [
            LoadImaged("image", reader=reader, dtype=torch.uint8, image_only=True),
            EnsureChannelFirstd("image", channel_dim=-1),
            CopyItemsd("image", names="pixels"),
            None if points is None else ExpertPointsd("image", file=points, items=items),
            NormalizeSAMd("image", pixel_std=pixel_std),
        ]
    )


def foreground_targets(
    pixel_std: PixelStd = "sam", classes: Mapping[str, Sequence[str]] | None = None
) -> Steps:
    """Normalise the image and draw the foreground ``label`` ``(1, H, W)``.

    Args:
        pixel_std: constants of the normalisation, see :class:`NormalizeSAMd`.
        classes: domains with one mask per class, see :class:`ForegroundMaskd`; the classes are dropped behind it.
    """
    return [
        NormalizeSAMd("image", pixel_std=pixel_std),
        ForegroundMaskd("instances", output_key="label", classes=classes),
        *([] if classes is None else [DeleteItemsd("classes")]),
    ]


def distance_targets(instances: InstanceRule) -> Steps:
    """Add the second channel of ``label`` that networks learn for the rule ``distance``; nothing for other rules."""
    return [DistanceTargetd()] if instances == "distance" else []


def hovernet_targets(wanted: bool) -> Steps:
    """Add HoVer-Net's maps to ``label`` behind the foreground if ``wanted``."""
    if not wanted:
        return []
    return [
        ComputeHoVerMapsd("instances"),
        ConcatItemsd(["label", "hover_instances"], name="label"),
    ]


def nucleus_sizes(wanted: bool) -> Steps:
    """Add the sizes of the nuclei if ``wanted``, as for prompts by boxes."""
    return [NucleusSizesd("instances")] if wanted else []


def foreground_of_all(wanted: bool) -> Steps:
    """Add the mask of all nuclei under ``foreground`` if ``wanted``."""
    return [ForegroundMaskd("instances", output_key="foreground")] if wanted else []


def expert_points(wanted: bool, max_points: int | None = 256, seed: int | None = None) -> Steps:
    """Prompt with points on nuclei of the ground truth if ``wanted``, see :class:`NucleusPointsd`."""
    return [NucleusPointsd("instances", max_points=max_points, seed=seed)] if wanted else []


def crop(size_px: int, *, pad_mode: str = "constant", random: bool = True) -> Steps:
    """Cut a square out of image and label map; smaller ones are padded.

    Args:
        size_px: side length of the square.
        pad_mode: mode of MONAI's ``SpatialPad``.
        random: anywhere, or in the middle.
    """
    size = [size_px, size_px]
    cut = RandSpatialCropd(_BOTH, size, random_size=False) if random else CenterSpatialCropd(_BOTH, size)
    return [SpatialPadd(_BOTH, size, mode=pad_mode), cut]


def working_size(size_px: int, fit: Fit = "tile", *, pad_mode: str = "constant") -> Steps:
    """Bring image and label map to the size a network is trained at, as inference does.

    Args:
        size_px: side length of the result.
        fit: ``tile`` cuts a random square, ``resize`` stretches the whole image.
        pad_mode: how smaller images are padded.

    Raises:
        ConfigurationError: ``fit`` is unknown.
    """
    check_fit(fit)
    return crop(size_px, pad_mode=pad_mode) if fit == "tile" else [resize(size_px)]


def flip_rotate_crop(size_px: int, *, pad_mode: str = "constant", fit: Fit = "tile") -> Steps:
    """Cut a random square, flip it, turn it by right angles and vary its colours.

    Args:
        size_px: side length of the square.
        pad_mode: how smaller images are padded.
        fit: ``resize`` stretches the whole image to the square instead.
    """
    return [
        *working_size(size_px, fit, pad_mode=pad_mode),
        RandFlipd(_BOTH, prob=0.5, spatial_axis=0),
        RandRotate90d(_BOTH, prob=0.75),
        RandColorJitterd("image", prob=0.8),
    ]


def flip_and_turn() -> Steps:
    """Flip along both axes and turn by right angles."""
    return [*_both_flips(), RandRotate90d(_BOTH, prob=0.75)]


def zoom(factors: Sequence[float]) -> Steps:
    """Magnify image and label map by a random factor between two, in seven of ten items; their size changes.

    Args:
        factors: smallest and largest.
    """
    return [RandZoomd(_BOTH, prob=0.7, min_zoom=factors[0], max_zoom=factors[1], keep_size=False)]


def keep(*names: str, optional: bool = True) -> SelectItemsd:
    """Keep these entries of an item and drop all others.

    Args:
        names: keys of the entries.
        optional: items need not have all of them.
    """
    return SelectItemsd(names, allow_missing_keys=optional)


def resize(size_px: int) -> Resized:
    """Return the transform that resizes image and label map to a square of ``size_px``."""
    return Resized(_BOTH, [size_px, size_px])


def to_instances(
    threshold: float,
    instances: InstanceRule,
    distance_rule: Mapping[str, Any] | None = None,
    *,
    hovernet: bool = False,
    with_truth: bool = False,
    classes: Mapping[str, Sequence[str]] | None = None,
) -> Compose:
    """Turn the output ``pred`` of a semantic network into instances.

    Args:
        threshold: threshold of the foreground probability.
        instances: rule, see :class:`ProbabilityToInstancesd`.
        distance_rule: options of the rule ``distance``.
        hovernet: the output is HoVer-Net's.
        with_truth: keep the true label map under ``label_instances``, for metrics.
        classes: domains with one channel per class, see :class:`ProbabilityToInstancesd`.
    """
    return chain(
        [
            HoVerNetInstancesd("pred", threshold=threshold)
            if hovernet
            else ProbabilityToInstancesd(
                "pred",
                threshold=threshold,
                instances=instances,
                distance_rule=distance_rule,
                classes=classes,
            ),
            CopyItemsd("instances", names="label_instances") if with_truth else None,
        ]
    )


def promptnucseg_point_augmentation(
    shift_px: int, crop_px: int | None = None, padded_px: int | None = None
) -> Steps:
    """Augment as PromptNucSeg does for its prompter.

    Args:
        shift_px: largest shift.
        crop_px: side of the random square that is cut first; None takes the whole image.
        padded_px: side to which the result is padded at its end; None leaves it.
    """
    steps: Steps = [
        *(crop(crop_px) if crop_px else []),
        RandGridShuffled(prob=0.5, grid=4),
        RandColorJitterd("image", prob=0.2, brightness=0.25, contrast=0.25, balance=0.1),
        RandRotate90d(_BOTH, prob=0.5),
        *_blur_and_noise(),
        RandZoomBlurd("image", prob=0.1, max_factor=1.05),
        *_both_flips(),
        RandAffined(
            _BOTH,
            prob=0.5,
            translate_range=[shift_px, shift_px],
            scale_range=[0.1, 0.1],
            mode=_BILINEAR_AND_IDS,
            padding_mode="zeros",
            cache_grid=False,
        ),
        _clip(),
    ]
    if padded_px:
        steps.append(SpatialPadd(_BOTH, [padded_px, padded_px], method="end", mode="constant"))
    return steps


def promptnucseg_mask_augmentation(size_px: int) -> Steps:
    """Augment as PromptNucSeg does for its segmenter.

    Args:
        size_px: side length of the crops.
    """
    return [
        *crop(size_px),
        RandRotate90d(_BOTH, prob=0.5),
        *_both_flips(),
        *_blur_and_noise(),
        RandColorJitterd("image", prob=0.2, brightness=0.25, contrast=0.25, balance=0.1),
        RandSuperpixelsd("image", prob=0.1, replace_prob=0.1, n_segments=200, max_side_px=128),
        RandZoomBlurd("image", prob=0.1, max_factor=1.05),
        RandZoomd(_BOTH, prob=0.1, min_zoom=1.0, max_zoom=2.0),
        RandAffined(
            _BOTH,
            prob=0.2,
            rotate_range=0.18,
            shear_range=[0.18, 0.18],
            scale_range=[0.18, 0.18],
            translate_range=[15, 15],
            mode=_BILINEAR_AND_IDS,
            padding_mode="zeros",
            cache_grid=False,
        ),
        _clip(),
    ]


def _both_flips() -> Steps:
    return [RandFlipd(_BOTH, prob=0.5, spatial_axis=axis) for axis in (0, 1)]


def _blur_and_noise() -> Steps:
    return [
        RandSimulateLowResolutiond(
            "image",
            prob=0.15,
            zoom_range=[0.5, 0.5],
            downsample_mode="area",
            upsample_mode="bilinear",
            align_corners=False,
        ),
        RandGaussianSmoothd("image", prob=0.2, sigma_x=[0.8, 2.6], sigma_y=[0.8, 2.6]),
        RandGaussianNoised("image", prob=0.25, mean=0.0, std=7.07),
        _clip(),
    ]


def _clip() -> ScaleIntensityRanged:
    return ScaleIntensityRanged("image", a_min=0.0, a_max=255.0, b_min=0.0, b_max=255.0, clip=True)
