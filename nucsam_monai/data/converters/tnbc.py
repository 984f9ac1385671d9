"""Convert TNBC: H&E of triple-negative breast cancer with binary masks, one folder per slide."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    check_counts,
    named_protocols,
    write_dataset,
)
from nucsam_monai.data.converters.pairing import Pair, decode_pair, pair_by_name
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.splits import SPLIT_SEED, TRAIN_80_10_10, random_split
from nucsam_monai.data.writer import Sample, SampleJob
from nucsam_monai.utils.instances import connected_components

INFO = DatasetInfo(
    name="tnbc",
    title="TNBC: H&E of triple-negative breast cancer of 11 patients with binary masks",
    images="50",
    size_px="512x512",
    modality="H&E",
    magnification=40.0,
    mpp=None,
    licence="CC BY 4.0",
    citation="Naylor et al., Segmentation of nuclei in histopathology images by deep regression of the "
    "distance map, IEEE TMI 38, 2019",
    obtain="https://zenodo.org/records/1175282 (TNBC_NucleiSegmentation.zip)",
    protocols={
        "random_40_5_5": "80/10/10 of the images of slides 1 to 11, sorted ids shuffled with seed; images of "
        "one patient are in several splits",
        "by_patient": "80/10/10 of the images of slides 1 to 11, sorted slides shuffled with seed; no patient "
        "is in two splits",
    },
)

_PUBLISHED_SLIDES = 11
_LAYOUT = "Slide_<slide>/<image>.png and GT_<slide>/<image>.png"
_MEMBER = re.compile(
    r"(?:.*/)?(?P<kind>slide|gt)[ _-]*(?P<slide>\d+)/(?P<stem>[^/]+)\.(?P<suffix>png|tiff?|bmp|jpe?g|npy|mat)",
    re.IGNORECASE,
)


def convert(
    source: Path | str,
    output_dir: Path | str,
    *,
    protocol: str | None = None,
    seed: int = SPLIT_SEED,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the images of all slides; nuclei are the 8-connected components of the binary masks.

    Touching nuclei are therefore one instance, which caps every instance metric. A mask of more than two
    values is taken as a map of ids. Slides past the 11th, which a later release of the dataset added, are
    converted but in no split.

    Args:
        source: ``TNBC_NucleiSegmentation.zip`` or the folder unpacked from it.
        output_dir: the dataset folder to write.
        protocol: ``"random_40_5_5"`` (the default) or ``"by_patient"``.
        seed: seed of the splits.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        pairs = pair_by_name(
            opened, _members(opened, "slide"), _members(opened, "gt"), title="TNBC", layout=_LAYOUT
        )
        published = {sample_id: _slide(sample_id) for sample_id in pairs if _is_published(sample_id)}
        check_counts("tnbc", opened, {"images": len(published)})
        splits = {
            "random_40_5_5": random_split(published, TRAIN_80_10_10, seed),
            "by_patient": random_split(published, TRAIN_80_10_10, seed, published),
        }
        return write_dataset(
            output_dir,
            INFO,
            [
                SampleJob(
                    sample_id,
                    partial(_decode, pair),
                    tissue="breast" if sample_id in published else None,
                    group=_slide(sample_id),
                )
                for sample_id, pair in sorted(pairs.items())
            ],
            sources=[opened],
            protocols=named_protocols(INFO, splits, published),
            protocol=protocol,
            conversion={"instances": "8-connected components of binary masks", "seed": seed},
            workers=workers,
        )


def _members(source: Source, kind: str) -> Iterator[tuple[str, str]]:
    """Yield ``(id, member name)``; an id begins with the number of its slide."""
    for name, found in source.match(_MEMBER):
        if found["kind"].lower() == kind:
            slide = f"{int(found['slide']):02d}"
            stem = found["stem"]
            yield stem if stem.startswith(f"{slide}_") else f"{slide}_{stem}", name


def _slide(sample_id: str) -> str:
    return f"slide_{sample_id.partition('_')[0]}"


def _is_published(sample_id: str) -> bool:
    return int(sample_id.partition("_")[0]) <= _PUBLISHED_SLIDES


def _decode(pair: Pair) -> Sample:
    sample = decode_pair(pair)
    if np.unique(sample.instances).size > 2:
        return sample
    return Sample(sample.image, connected_components(sample.instances > 0))
