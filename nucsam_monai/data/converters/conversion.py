"""Convert a public dataset: what is known of it, its protocols, what its archives must hold, and writing its folder."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.converters.sources import Source, source_digests
from nucsam_monai.data.dataset import DatasetMetadata
from nucsam_monai.data.protocols import Protocol, divided_groups
from nucsam_monai.data.writer import DatasetWriter, SampleJob, SplitCounts
from nucsam_monai.utils.errors import ConfigurationError, DatasetError

_logger = logging.getLogger(__name__)
Splits = Mapping[str, Iterable[str]]
"""``{"training" | "validation" | "test": ids}``; absent splits are empty."""


@dataclass(frozen=True)
class DatasetInfo:
    """Describe a public dataset as its publication does.

    Attributes:
        name: name of the dataset and of its domain, for example ``"monuseg"``.
        title: description in one line.
        images: number of images, in words where it depends on the release.
        size_px: size of the images in pixels.
        modality: stain or microscopy, in words.
        magnification: objective magnification (``40.0`` for 40x); None where mixed or unknown.
        mpp: micrometres per pixel; None where mixed or unknown.
        licence: licence of images and annotation.
        citation: publication to cite.
        obtain: where to download the dataset.
        protocols: ``{name: description}`` of its named splits, the default first.
        class_names: names that class ids index from 0.
    """

    name: str
    title: str
    images: str
    size_px: str
    modality: str
    magnification: float | None
    mpp: float | None
    licence: str
    citation: str
    obtain: str
    protocols: Mapping[str, str]
    class_names: tuple[str, ...] = ("nucleus",)

    def chosen_protocol(self, name: str | None) -> str:
        """Return ``name``, or the default protocol for None.

        Raises:
            ConfigurationError: the dataset has no such protocol.
        """
        if name is None:
            return next(iter(self.protocols))
        if name not in self.protocols:
            raise ConfigurationError(f"protocol '{name}': expected one of {', '.join(self.protocols)}.")
        return name


@dataclass(frozen=True)
class ConversionSummary:
    """Summarise a finished conversion in numbers.

    Attributes:
        folder: the dataset folder that was written.
        name: name of the dataset.
        splits: images and nuclei per split.
        dropped: ``{why: how many}`` annotations that are not in the instance maps.
        protocol: the named split.
        most_nuclei: nuclei of the image that has most.
    """

    folder: Path
    name: str
    splits: Mapping[str, SplitCounts]
    dropped: Mapping[str, int] = field(default_factory=dict)
    protocol: str | None = None
    most_nuclei: int = 0


def write_dataset(
    output_dir: Path | str,
    info: DatasetInfo,
    jobs: Iterable[SampleJob],
    *,
    sources: Iterable[Source],
    protocols: Mapping[str, Protocol],
    protocol: str | None = None,
    class_names: tuple[str, ...] | None = None,
    conversion: Mapping[str, Any] | None = None,
    total: int | None = None,
    workers: int = 1,
) -> ConversionSummary:
    """Decode all samples of a dataset and write its folder, with a bar on the terminal.

    Args:
        output_dir: the dataset folder; it must not exist or be empty.
        info: description of the dataset.
        jobs: all samples, those that the protocol leaves out included, so that one folder serves every
            protocol.
        sources: the archives and folders that were read.
        protocols: the named splits, with the names of ``info.protocols``; those that the sources have no
            images for may be left out.
        protocol: the one that ``dataset.json`` is split by; None takes the first of ``protocols``.
        class_names: names of the classes, where the sources and not ``info`` know them.
        conversion: options of the conversion, noted in ``dataset.json``.
        total: number of samples, where ``jobs`` has no length.
        workers: processes that decode and write.

    Raises:
        ConfigurationError: the protocol is unknown, or ``sources`` lack the images for it.
        DatasetError: a sample is damaged, or ``output_dir`` is not empty.
    """
    chosen = info.chosen_protocol(protocol) if protocol is not None else next(iter(protocols))
    if chosen not in protocols:
        raise ConfigurationError(
            f"protocol '{chosen}': these sources have images for {', '.join(protocols)} only."
        )
    metadata = DatasetMetadata(
        name=info.name,
        domain=info.name,
        modality=info.modality,
        magnification=info.magnification,
        mpp=info.mpp,
        licence=info.licence,
        citation=info.citation,
        class_names=class_names or info.class_names,
        source=source_digests(*sources),
        conversion=conversion or {},
        protocols=protocols,
        protocol=chosen,
    )
    with DatasetWriter(output_dir, metadata) as writer:
        writer.add_by_protocol(with_progress(jobs, info.name, "image", total), workers=workers)
        writer.note(dropped=dict(writer.dropped))
    return ConversionSummary(
        Path(output_dir), info.name, writer.counts, dict(writer.dropped), chosen, writer.most_nuclei
    )


def named_protocols(
    info: DatasetInfo, splits: Mapping[str, Splits], groups: Mapping[str, str] | None = None
) -> dict[str, Protocol]:
    """Make the protocols of a dataset of splits that are drawn already.

    A protocol other than the first needs test images; where the source has none it is left out. Whether a
    protocol divides groups is found out, not assumed.

    Args:
        info: description of the dataset and of its protocols.
        splits: ``{protocol: {split: ids}}`` in the order of ``info.protocols``.
        groups: ``{id: slide or patient}``, where known.
    """
    protocols: dict[str, Protocol] = {}
    for name, named in splits.items():
        ids = {split: tuple(members) for split, members in named.items()}
        if protocols and not ids.get("test"):
            continue
        divides = any(divided_groups(ids, groups or {}))
        protocols[name] = Protocol.from_splits(ids, info.protocols[name], divides_groups=divides)
    return protocols


@dataclass(frozen=True)
class KnownArchive:
    """Describe an archive that is recognised by its SHA-256, so that its content is known.

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
