"""Convert CPM-17: H&E tiles of four kinds of tumours with instance maps in ``.mat`` files."""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from nucsam_monai.data.converters.conversion import (
    ConversionSummary,
    DatasetInfo,
    Splits,
    check_counts,
    named_protocols,
    write_dataset,
)
from nucsam_monai.data.converters.pairing import decode_pair, pair_by_name, part_of
from nucsam_monai.data.converters.sources import Source, open_source
from nucsam_monai.data.splits import SPLIT_SEED, random_split
from nucsam_monai.data.writer import SampleJob
from nucsam_monai.utils.errors import DatasetError

INFO = DatasetInfo(
    name="cpm17",
    title="CPM-17: H&E of brain, lung, head and neck tumours with instance maps",
    images="32 + 32 test",
    size_px="500x500 to 600x600",
    modality="H&E",
    magnification=None,
    mpp=None,
    licence="not stated by its authors; for research",
    citation="Vu et al., Methods for segmentation and classification of digital microscopy tissue images, "
    "Frontiers in Bioengineering and Biotechnology 7, 2019",
    obtain="https://github.com/vqdang/hover_net (link to cpm17 with instance maps as .mat)",
    protocols={
        "cpm17_15": "15 % of the training images, drawn with seed, for validation; the 32 test images",
        "cpm17_plain": "all 32 training images, no validation; the 32 test images",
    },
)

_LAYOUT = "{train,test}/Images/<name>.png and {train,test}/Labels/<name>.mat"
_MEMBER = re.compile(
    r"(?:.*/)?(?P<kind>images?|labels?)/(?P<stem>[^/]+)\.(?P<suffix>png|tiff?|bmp|jpe?g|mat|npy)",
    re.IGNORECASE,
)
_PARTS = {"train": "train", "training": "train", "test": "test", "testing": "test"}
_HOLD_OUT = {"training": 0.85, "validation": 0.15}


def convert(
    source: Path | str,
    output_dir: Path | str,
    *,
    protocol: str | None = None,
    seed: int = SPLIT_SEED,
    workers: int = 1,
) -> ConversionSummary:
    """Convert the training and test images, which have the same names and get the ids ``<part>_<name>``.

    Args:
        source: the archive, the folder unpacked from it, or a folder with one archive per part.
        output_dir: the dataset folder to write.
        protocol: ``"cpm17_15"`` (the default) or ``"cpm17_plain"``.
        seed: seed of the validation images of ``"cpm17_15"``.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown, or the source has no images for it.
        DatasetError: the source is missing, damaged or of another layout, or ``output_dir`` is not empty.
    """
    with open_source(source) as opened:
        pairs = pair_by_name(
            opened, _members(opened, "image"), _members(opened, "label"), title="CPM-17", layout=_LAYOUT
        )
        train = [sample_id for sample_id in pairs if sample_id.startswith("train_")]
        test = [sample_id for sample_id in pairs if sample_id.startswith("test_")]
        check_counts("cpm17/train", opened, {"images": len(train)})
        check_counts("cpm17/test", opened, {"images": len(test)})
        splits: dict[str, Splits] = {
            "cpm17_15": {**random_split(train, _HOLD_OUT, seed), "test": test},
            "cpm17_plain": {"training": train, "test": test},
        }
        return write_dataset(
            output_dir,
            INFO,
            [SampleJob(sample_id, partial(decode_pair, pair)) for sample_id, pair in sorted(pairs.items())],
            sources=[opened],
            protocols=named_protocols(INFO, splits),
            protocol=protocol,
            conversion={"seed": seed},
            workers=workers,
        )


def _members(source: Source, kind: str) -> Iterator[tuple[str, str]]:
    """Yield ``(id, member name)`` of the images or of the label maps."""
    for name, found in source.match(_MEMBER):
        if not found["kind"].lower().startswith(kind):
            continue
        part = part_of(source, name, _PARTS)
        if part is None:
            raise DatasetError(f"{source.where(name)}: in no folder train or test. Expected {_LAYOUT}.")
        yield f"{part}_{found['stem']}", name
