"""What every converter has in common: what is known of a dataset, and writing its folder."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.converters.sources import Source, source_digests
from nucsam_monai.data.metadata import DatasetMetadata
from nucsam_monai.data.protocols import Protocol
from nucsam_monai.data.samples import SampleJob
from nucsam_monai.data.writer import DatasetWriter, SplitCounts
from nucsam_monai.utils.errors import ConfigurationError


@dataclass(frozen=True)
class DatasetInfo:
    """A public dataset as its own publication describes it.

    Attributes:
        name: name of the dataset and of its domain, for example ``"monuseg"``.
        title: what it is, in one line.
        images: number of images, in words where it depends on the release.
        size_px: size of the images in pixels.
        modality: stain or microscopy, in words.
        magnification: objective magnification (``40.0`` for 40x); None where mixed or unknown.
        mpp: micrometres per pixel; None where mixed or unknown.
        licence: licence of images and annotation.
        citation: what to cite.
        obtain: where users get it.
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
    """A finished conversion in numbers.

    Attributes:
        folder: the dataset folder that was written.
        name: name of the dataset.
        splits: images and nuclei per split.
        dropped: ``{why: how many}`` annotations that are not in the instance maps.
        protocol: the named split.
    """

    folder: Path
    name: str
    splits: Mapping[str, SplitCounts]
    dropped: Mapping[str, int] = field(default_factory=dict)
    protocol: str | None = None


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
        info: what is known of the dataset.
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
    return ConversionSummary(Path(output_dir), info.name, writer.counts, dict(writer.dropped), chosen)
