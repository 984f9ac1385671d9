"""Turn the archives of public datasets into dataset folders, check such folders, and hand them to nnU-Net.

Examples::

    python scripts/prepare_dataset.py list
    python scripts/prepare_dataset.py download dsb2018 --output_dir downloads
    python scripts/prepare_dataset.py dsb2018 --source stage1_train.zip --output_dir data/dsb2018
    python scripts/prepare_dataset.py monuseg --source "MoNuSeg 2018 Training Data.zip" \
        --test_source MoNuSegTestData.zip --output_dir data/monuseg
    python scripts/prepare_dataset.py nucls --source nucls --output_dir data/nucls
    python scripts/prepare_dataset.py folder --images my/images --instances my/labels --output_dir data/mine
    python scripts/prepare_dataset.py validate data/monuseg
    python scripts/prepare_dataset.py to_nnunet data/monuseg --output_dir nnUNet_raw
    python scripts/prepare_dataset.py from_nnunet nnunet --dataset data/monuseg --output_dir output/nnunet

A source may also be the folder unpacked from the archive, or a folder of several archives. ``folder`` takes
your own images and label maps, paired by name. The options of one dataset are listed by
``python scripts/prepare_dataset.py dsb2018 --help``.
"""

import functools
import inspect
import os
import shlex
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from nucsam_monai.apps.command_line import run_command
from nucsam_monai.data.converters import CONVERTERS, ConversionSummary, folder
from nucsam_monai.data.download import HOSTED_FILES, hosted_file
from nucsam_monai.data.download import download as download_file
from nucsam_monai.data.nnunet import export_nnunet, import_nnunet
from nucsam_monai.data.validation import validate_dataset
from nucsam_monai.data.writer import SplitCounts
from nucsam_monai.utils.errors import ConfigurationError


def list_datasets() -> str:
    """List the datasets that can be prepared: size, licence, named splits and where to get them."""
    blocks = []
    for name, converter in CONVERTERS.items():
        info = converter.info
        magnification = f"{info.magnification:g}x" if info.magnification else "mixed or unknown magnification"
        blocks.append(
            f"{name:<10} {info.title}\n"
            f"{'':<10} {info.images} images, {info.size_px} px, {magnification}; {info.licence}\n"
            f"{'':<10} protocols: {', '.join(info.protocols)}\n"
            f"{'':<10} {info.obtain}{'; or: download ' + name if name in HOSTED_FILES else ''}"
        )
    return "\n".join(blocks)


def download(dataset: str, output_dir: str = "downloads", **unknown: object) -> str:
    """Download the archive of an openly hosted dataset (dsb2018, tnbc), and say how to convert it.

    An interrupted download leaves nothing behind and starts from the beginning when the command is repeated.
    """
    refuse_unknown(unknown, ("dataset", "output_dir"))
    hosted = hosted_file(dataset)
    archive = Path(output_dir) / hosted.name
    is_new = download_file(hosted.url, archive, sha256=hosted.sha256, max_bytes=hosted.max_bytes)
    convert = ["nucsam", "datasets", dataset, "--source", str(archive), "--output_dir"]
    return "\n".join(
        [
            f"{archive}: {'downloaded' if is_new else 'is there already'}, sha256 as expected",
            f"convert it with: {shlex.join([*convert, f'data/{dataset}'])}",
        ]
    )


def validate(folder: str) -> str:
    """Open every file of a dataset folder and report what is wrong, or its counts."""
    summary = validate_dataset(folder)
    return "\n".join([f"{summary.folder}: valid dataset '{summary.name}'", *_count_lines(summary.splits)])


def reporting(convert: Callable[..., ConversionSummary | str]) -> Callable[..., str]:
    """Make a converter return its counts as text, with the converter's own signature and help.

    Fire would run the converter first and complain about a misspelt option afterwards, so the command takes
    every option and complains itself.
    """
    signature = inspect.signature(convert)

    @functools.wraps(convert)
    def command(*args: object, **options: object) -> str:
        refuse_unknown(set(options) - set(signature.parameters), signature.parameters)
        if "workers" in signature.parameters:
            options.setdefault("workers", os.cpu_count() or 1)
        summary = convert(*args, **options)
        if isinstance(summary, str):
            return summary
        dropped = [f"  dropped    {count:>6} {reason}" for reason, count in summary.dropped.items() if count]
        protocol = f", protocol '{summary.protocol}'" if summary.protocol else ""
        return "\n".join(
            [f"{summary.folder}: wrote '{summary.name}'{protocol}", *_count_lines(summary.splits), *dropped]
        )

    rest = inspect.Parameter("unknown", inspect.Parameter.VAR_KEYWORD)
    command.__signature__ = signature.replace(parameters=[*signature.parameters.values(), rest])  # type: ignore[attr-defined]
    return command


def refuse_unknown(unknown: Iterable[str], known_names: Iterable[str]) -> None:
    """Complain about a misspelt option.

    Raises:
        ConfigurationError: there is one.
    """
    for name in sorted(unknown):
        raise ConfigurationError(
            f"unknown option --{name}; expected {', '.join(f'--{known}' for known in known_names)}."
        )


def _count_lines(splits: Mapping[str, SplitCounts]) -> list[str]:
    return [
        f"  {name:<10} images {count.images:>6}, nuclei {count.nuclei:>8}" for name, count in splits.items()
    ]


def main(arguments: list[str] | None = None) -> int:
    """Run one command; return the exit code."""
    commands = {name: reporting(converter.convert) for name, converter in CONVERTERS.items()}
    commands["folder"] = reporting(folder.convert)
    commands.update({"to_nnunet": reporting(export_nnunet), "from_nnunet": reporting(import_nnunet)})
    commands.update({"download": download, "validate": validate, "list": list_datasets})
    return run_command(commands, arguments, name="datasets")


if __name__ == "__main__":
    sys.exit(main())
