"""Convert the 2018 Data Science Bowl, stage 1 (BBBC038): one folder per image, one binary PNG per nucleus."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    check_counts,
    write_dataset,
)
from nucsam_monai.data.converters.rasters import decode_mask, decode_rgb
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.splits import SPLIT_SEED, TRAIN_80_10_10, random_split
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.errors import DatasetError

INFO = DatasetInfo(
    name="dsb2018",
    title="2018 Data Science Bowl, stage 1: nuclei of many cell types and microscopes",
    images="670 (+65 test)",
    size_px="256x256 to 1040x1388",
    modality="fluorescence, H&E and bright field microscopy",
    magnification=None,
    mpp=None,
    licence="CC0-1.0",
    citation="Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl, "
    "Nature Methods 16, 2019; image set BBBC038v1, Broad Bioimage Benchmark Collection",
    obtain="https://bbbc.broadinstitute.org/BBBC038 (stage1_train.zip)",
    protocols={
        "random_80_10_10": "80/10/10 of the stage 1 training images, sorted ids shuffled with seed",
        "stage1_test": "the stage 1 test images, and 90/10 of the training images, sorted ids shuffled with seed",
    },
)

_LAYOUT = "<id>/images/<id>.png and <id>/masks/<one per nucleus>.png"
_MEMBER = re.compile(r"(?P<root>(?:.*/)?)(?P<id>[^/]+)/(?P<kind>images|masks)/[^/]+\.png", re.IGNORECASE)
_WITHOUT_TEST = {"training": 0.9, "validation": 0.1}


@dataclass(frozen=True)
class _Members:
    """Member names of one image and its masks, the masks sorted."""

    source: Source
    image: str
    masks: tuple[str, ...]


def convert(
    source: Path | str,
    output_dir: Path | str,
    test_source: Path | str | None = None,
    *,
    protocol: str | None = None,
    seed: int = SPLIT_SEED,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the stage 1 training archive, split 80/10/10 by the sorted ids.

    Masks are painted in the sorted order of their names; where annotations overlap, the first keeps the
    pixel. The alpha channel of the images is dropped, and so are empty and completely hidden masks.

    Args:
        source: ``stage1_train.zip`` or the folder unpacked from it; original or corrected annotation.
        output_dir: the dataset folder to write.
        test_source: annotated ``stage1_test.zip``, which makes the protocol ``stage1_test`` possible.
        protocol: ``"random_80_10_10"``, or ``"stage1_test"``, which is the default with ``test_source``.
        seed: seed of the splits.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown or needs ``test_source``.
        DatasetError: a source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with ExitStack() as stack:
        sources = [stack.enter_context(open_source(source))]
        samples = _find_samples(sources[0], "dsb2018/train")
        protocols = {"random_80_10_10": _protocol("random_80_10_10", samples, TRAIN_80_10_10, seed)}
        if test_source:
            sources.append(stack.enter_context(open_source(test_source)))
            tests = _find_samples(sources[1], "dsb2018/test")
            if both := sorted(set(tests) & set(samples)):
                raise DatasetError(f"{test_source}: {len(both)} images are in {source} too, first {both[0]}.")
            protocols["stage1_test"] = _protocol("stage1_test", samples, _WITHOUT_TEST, seed, tests)
            protocol = protocol or "stage1_test"
            samples |= tests
        jobs = [
            SampleJob(sample_id, partial(_decode, members)) for sample_id, members in sorted(samples.items())
        ]
        return write_dataset(
            output_dir,
            INFO,
            jobs,
            sources=sources,
            protocols=protocols,
            protocol=protocol,
            conversion={"overlap": "first", "seed": seed},
            workers=workers,
        )


def _protocol(
    name: str,
    samples: Mapping[str, object],
    fractions: Mapping[str, float],
    seed: int,
    tests: Iterable[str] = (),
) -> Protocol:
    splits = {"test": list(tests), **random_split(samples, fractions, seed)}
    return Protocol.from_splits(splits, f"{INFO.protocols[name]} {seed}")


def _find_samples(source: Source, part: str) -> dict[str, _Members]:
    """Pair images and masks by the name of the folder that holds both, and check the counts of the source."""
    images: dict[str, list[str]] = {}
    masks: dict[str, list[str]] = {}
    roots: set[str] = set()
    for name, found in source.match(_MEMBER):
        roots.add(found["root"])
        (images if found["kind"].lower() == "images" else masks).setdefault(found["id"], []).append(name)
    if not images:
        raise source.refusal("a DSB2018 archive", _LAYOUT)
    if len(roots) > 1:
        raise DatasetError(
            f"{source.path}: samples below {sorted(roots)[:3]}, expected one folder; pass one."
        )
    _check_pairs(source, images, masks)
    samples = {
        sample_id: _Members(source, names[0], tuple(masks[sample_id])) for sample_id, names in images.items()
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


def _decode(members: _Members) -> Sample:
    """Paint the masks in the order of their names; the first keeps the pixel."""
    source = members.source
    image = decode_rgb(source.read(members.image), source.where(members.image))
    instances = np.zeros(image.shape[:2], dtype=np.int32)
    dropped: Counter[str] = Counter()
    for instance_id, name in enumerate(members.masks, start=1):
        mask = decode_mask(source.read(name), source.where(name))
        if mask.shape != instances.shape:
            raise DatasetError(f"{source.where(name)}: mask is {mask.shape}, its image is {instances.shape}.")
        claimed = np.flatnonzero(mask)
        free = claimed[instances.ravel()[claimed] == 0]
        if not free.size:
            dropped["hidden masks" if claimed.size else "empty masks"] += 1
        instances.ravel()[free] = instance_id
    return Sample(image, instances, dropped=dropped)
