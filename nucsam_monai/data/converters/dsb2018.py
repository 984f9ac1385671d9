"""2018 Data Science Bowl, stage 1 (BBBC038): one folder per image, one binary PNG per nucleus."""

import re
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nucsam_monai.data.converters.known_archives import check_counts
from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.converters.rasters import decode_mask, decode_rgb
from nucsam_monai.data.converters.sources import Source, open_source, source_digests
from nucsam_monai.data.converters.summary import ConversionSummary
from nucsam_monai.data.dataset import DatasetMetadata
from nucsam_monai.data.splits import SPLIT_SEED, TRAIN_80_10_10, random_split
from nucsam_monai.data.writer import DatasetWriter
from nucsam_monai.utils.errors import DatasetError

LICENCE = "CC0-1.0"
CITATION = (
    "Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, "
    "Nature Methods 16, 2019; image set BBBC038v1, Broad Bioimage Benchmark Collection"
)

_LAYOUT = "<id>/images/<id>.png and <id>/masks/<one per nucleus>.png"
_MEMBER = re.compile(r"(?P<root>(?:.*/)?)(?P<id>[^/]+)/(?P<kind>images|masks)/[^/]+\.png", re.IGNORECASE)
_WITHOUT_TEST = {"training": 0.9, "validation": 0.1}


@dataclass(frozen=True)
class _Sample:
    """Member names of one image and its masks, the masks sorted."""

    source: Source
    image: str
    masks: tuple[str, ...]


def convert(
    source: Path | str, output_dir: Path | str, test_source: Path | str | None = None, seed: int = SPLIT_SEED
) -> ConversionSummary:
    """Convert the stage 1 training archive, split 80/10/10 by the sorted ids.

    Masks are painted in the sorted order of their names; where annotations overlap, the first keeps the
    pixel. The alpha channel of the images is dropped, and so are empty and completely hidden masks.

    Args:
        source: ``stage1_train.zip`` or the folder unpacked from it; original or corrected annotation.
        output_dir: the dataset folder to write.
        test_source: annotated ``stage1_test.zip``; given, it is the test split and ``source`` is split 90/10.
        seed: seed of the split.

    Raises:
        DatasetError: a source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with ExitStack() as stack:
        train = stack.enter_context(open_source(source))
        samples = _find_samples(train, "dsb2018/train")
        splits = random_split(samples, _WITHOUT_TEST if test_source else TRAIN_80_10_10, seed)
        sources = [train]
        if test_source:
            sources.append(stack.enter_context(open_source(test_source)))
            tests = _find_samples(sources[-1], "dsb2018/test")
            if both := sorted(set(tests) & set(samples)):
                raise DatasetError(f"{test_source}: {len(both)} images are in {source} too, first {both[0]}.")
            samples |= tests
            splits["test"] = sorted(tests)
        writer = stack.enter_context(DatasetWriter(output_dir, _metadata(source_digests(*sources), seed)))
        jobs = [(split, sample_id) for split, ids in splits.items() for sample_id in ids]
        dropped: Counter[str] = Counter()
        for split, sample_id in with_progress(jobs, "dsb2018", "image"):
            image, instances = _read_sample(samples[sample_id], dropped)
            writer.add(split, sample_id, image, instances)
        writer.note(dropped=dict(dropped))
    return ConversionSummary(Path(output_dir), "dsb2018", writer.counts, dict(dropped))


def _find_samples(source: Source, part: str) -> dict[str, _Sample]:
    """Pair images and masks by the name of the folder that holds both, and check the counts of the source."""
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    roots: set[str] = set()
    for name, found in source.match(_MEMBER):
        roots.add(found["root"])
        (images if found["kind"].lower() == "images" else masks).setdefault(found["id"], []).append(name)
    if not images:
        raise DatasetError(
            f"{source.path}: not a DSB2018 archive, expected {_LAYOUT}; first file: {source.names[0]}."
        )
    if len(roots) > 1:
        raise DatasetError(
            f"{source.path}: samples below {sorted(roots)[:3]}, expected one folder; pass one."
        )
    _check_pairs(source, images, masks)
    samples = {
        sample_id: _Sample(source, names[0], tuple(masks[sample_id])) for sample_id, names in images.items()
    }
    check_counts(part, source, {"images": len(samples), "masks": sum(map(len, masks.values()))})
    return samples


def _check_pairs(source: Source, images: dict[str, list[str]], masks: dict[str, list[str]]) -> None:
    several = sorted(sample_id for sample_id, names in images.items() if len(names) > 1)
    without_masks = sorted(set(images) - set(masks))
    without_image = sorted(set(masks) - set(images))
    for ids, problem in (
        (several, "more than one image"),
        (without_masks, "no masks (the test archive of the competition has none)"),
        (without_image, "masks but no image"),
    ):
        if ids:
            raise DatasetError(
                f"{source.path}: {len(ids)} samples have {problem}, first {ids[0]}; expected {_LAYOUT}."
            )


def _read_sample(sample: _Sample, dropped: Counter[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the ``(H, W, 3)`` uint8 image and the ``(H, W)`` int32 map, ids in the order of the masks."""
    source = sample.source
    image = decode_rgb(source.read(sample.image), source.where(sample.image))
    instances = np.zeros(image.shape[:2], dtype=np.int32)
    for instance_id, name in enumerate(sample.masks, start=1):
        mask = decode_mask(source.read(name), source.where(name))
        if mask.shape != instances.shape:
            raise DatasetError(f"{source.where(name)}: mask is {mask.shape}, its image is {instances.shape}.")
        claimed = np.flatnonzero(mask)
        free = claimed[instances.ravel()[claimed] == 0]
        if not free.size:
            dropped["hidden masks" if claimed.size else "empty masks"] += 1
        instances.ravel()[free] = instance_id
    return image, instances


def _metadata(digests: dict[str, str], seed: int) -> DatasetMetadata:
    return DatasetMetadata(
        name="dsb2018",
        domain="dsb2018",
        modality="fluorescence, H&E and bright field microscopy",
        magnification=None,
        mpp=None,
        licence=LICENCE,
        citation=CITATION,
        source=digests,
        conversion={"overlap": "first", "seed": seed},
    )
