"""What is expected in the archives of public datasets: counts and checksums."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from nucsam_monai.data.converters.sources import Source
from nucsam_monai.utils.errors import DatasetError

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownArchive:
    """An archive whose every byte is known, and therefore its content.

    Attributes:
        sha256: digest of the file.
        title: which copy of the dataset it is.
        counts: ``{what: how many}``, before anything is dropped.
    """

    sha256: str
    title: str
    counts: Mapping[str, int]


PUBLISHED_COUNTS: Mapping[str, Mapping[str, int]] = {
    "dsb2018/train": {"images": 670},
    "dsb2018/test": {"images": 65},
    "monuseg/train": {"images": 37},
    "monuseg/test": {"images": 14},
    "kumar/train": {"images": 16},
    "kumar/test1": {"images": 8},
    "kumar/test2": {"images": 6},
    "tnbc": {"images": 50},
    "segpc/train": {"images": 298},
    "segpc/validation": {"images": 200},
    "cryonuseg": {"images": 30},
    "nuinsseg": {"images": 665},
    "cpm17/train": {"images": 32},
    "cpm17/test": {"images": 32},
    "pannuke/fold1": {"images": 2656},
    "pannuke/fold2": {"images": 2523},
    "pannuke/fold3": {"images": 2722},
    "conic": {"images": 4981},
    "glas/train": {"images": 85},
    "glas/test": {"images": 80},
}
"""``{dataset/part: {what: how many}}`` as the datasets' own publications state them."""

KNOWN_ARCHIVES = (
    KnownArchive(
        "dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
        "DSB2018 stage 1 train, original annotation",
        {"images": 670},
    ),
    KnownArchive(
        "85cab41c64e570eea04aad29f5b09c76260841bc68cee303f1676ec70389dd24",
        "DSB2018 stage 1 train, annotation corrected by the community",
        {"images": 664, "masks": 28_986},
    ),
    KnownArchive(
        "f9eb4a9f2c7b212b9b00ab42763b950ab96ef5b938060449055e88d3a082bf32",
        "DSB2018 stage 1 test, annotation corrected by the community",
        {"images": 65, "masks": 4_152},
    ),
    KnownArchive(
        "25d3d3185bb2970b397cafa72eb664c9b4d24294aee382e7e3df9885affce742",
        "MoNuSeg training data, 37 images",
        {"images": 37},
    ),
    KnownArchive(
        "13e522387ae8b1bcc0530e13ff9c7b4d91ec74959ef6f6e57747368d7ee6f88a",
        "MoNuSeg test data",
        {"images": 14},
    ),
    KnownArchive(
        "21f7974cbadf47c5c24bc2b721e6975ee0f85248f2ee9c87af94961429705e4e",
        "MoNuSeg training data, 13 of the classic images",
        {"images": 13, "regions": 4_951},
    ),
    KnownArchive(
        "7bb37a080a798a7f1ebca7e2ec94ed81fb853e729fcbb0b4af36a35c95160055",
        "MoNuSeg test data",
        {"images": 14, "regions": 6_697},
    ),
)

_BY_DIGEST = {archive.sha256: archive for archive in KNOWN_ARCHIVES}


def check_counts(part: str, source: Source, found: Mapping[str, int]) -> None:
    """Compare what was found in a source with what should be there.

    A known archive must hold exactly what it is known to hold. Of an unknown one (a corrected or reduced
    copy, an unpacked folder) a difference from the published counts is logged as a warning.

    Args:
        part: a key of :data:`PUBLISHED_COUNTS`, for example ``"dsb2018/train"``.
        source: the archive or folder.
        found: ``{what: how many}``.

    Raises:
        DatasetError: a known archive was read wrongly.
    """
    known = _BY_DIGEST.get(source.sha256)
    expected = known.counts if known else PUBLISHED_COUNTS.get(part, {})
    differences = [
        f"{found[what]} {what}, expected {count}"
        for what, count in expected.items()
        if what in found and found[what] != count
    ]
    if known and differences:
        raise DatasetError(f"{source.path} is '{known.title}', but found {'; '.join(differences)}.")
    if differences:
        _logger.warning(
            "%s is not a known copy of %s (sha256 %s): found %s. It is converted as it is.",
            source.path,
            part,
            source.sha256,
            "; ".join(differences),
        )
