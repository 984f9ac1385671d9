"""Collect what identifies a run: versions, source revision, seed, weights, dataset and parameters."""

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import monai
import numpy as np
import torch
from monai.utils import get_seed

from nucsam_monai import __version__
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import sha256_of_file

MAX_TEXT_LENGTH = 6000  # characters; MLflow's limit for the value of a parameter
_DIGEST_LENGTH = 36  # characters; MLflow's limit for the digest of a dataset
_GIT_TIMEOUT_S = 5.0
_NAME_LENGTH = 250  # characters; MLflow's limit for a name
_NOT_IN_A_NAME = re.compile(r"[^\w.\- /]")


@dataclass(frozen=True)
class DatasetFacts:
    """Identify one split of a dataset folder as MLflow records it.

    Attributes:
        name: the ``name`` in ``dataset.json``, else the folder's name.
        split: which part of the folder was used.
        sha256: 64 hexadecimal digits over the split's name and ``dataset.json``, or over the sorted list of
            file names and sizes without a ``dataset.json``.
        items: number of items of the split, or of files.
        directory: absolute path of the folder.
        protocol: the named split that ``split`` belongs to; None where the dataset has none.
    """

    name: str
    split: str
    sha256: str
    items: int
    directory: Path
    protocol: str | None = None

    @property
    def digest(self) -> str:
        """The leading digits of :attr:`sha256`, as many as MLflow keeps."""
        return self.sha256[:_DIGEST_LENGTH]


def tracked_name(name: str) -> str:
    """Make ``name`` one that MLflow takes for a metric, parameter or tag: other characters become ``_``.

    Example:
        >>> tracked_name("train#loss@0.5")
        'train_loss_0.5'
    """
    parts = [part.lstrip(".") for part in _NOT_IN_A_NAME.sub("_", name)[:_NAME_LENGTH].split("/")]
    return "/".join(part for part in parts if part) or "_"


def flatten_params(params: Mapping[str, Any]) -> dict[str, str]:
    """Flatten nested settings to ``{"section.key": text}``; what is not a scalar or list of scalars is left out.

    Example:
        >>> flatten_params({"optimizer": {"lr": 0.001, "betas": [0.9, 0.999]}})
        {'optimizer.lr': '0.001', 'optimizer.betas': '[0.9, 0.999]'}
    """
    return {tracked_name(key): text[:MAX_TEXT_LENGTH] for key, text in _flat_items(params, "")}


def scalar_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return every scalar of (nested) metrics by name, nested names joined by ``/``.

    Python and NumPy numbers and one-element tensors are scalars; arrays, text and ``None`` are left out.
    """
    scalars: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            nested = scalar_metrics(value)
            scalars.update({f"{tracked_name(str(name))}/{inner}": number for inner, number in nested.items()})
        elif _is_number(value):
            scalars[tracked_name(str(name))] = float(value)
    return scalars


def environment_facts(checkout: Path) -> dict[str, str]:
    """Return tags that identify what ran: command, versions, seed if set, and source revision.

    Args:
        checkout: folder whose git revision is returned; a folder outside git has none.
    """
    import mlflow

    facts = {"nucsam_monai_version": __version__, "command": command()}
    for package in (torch, monai, mlflow):
        facts[f"{package.__name__}_version"] = str(package.__version__)
    if get_seed() is not None:
        facts["seed"] = str(get_seed())
    return facts | git_facts(checkout)


def command() -> str:
    """Return the command that started this process, without the passwords in addresses."""
    return without_passwords(shlex.join(sys.orig_argv))


def without_passwords(text: str) -> str:
    """Return a text whose addresses have lost their user and password.

    Example:
        >>> without_passwords("https://me:secret@host/")
        'https://host/'
    """
    return re.sub(r"(://)[^/@\s]+@", r"\1", text)


def git_facts(folder: Path) -> dict[str, str]:
    """Return ``git_commit``, ``git_dirty`` and MLflow's own source tag; empty outside git or without git.

    ``git_dirty`` is ``"true"`` where tracked files differ from the commit.
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    facts = {"git_commit": commit, "mlflow.source.git.commit": commit}
    changes = _git(folder, "status", "--porcelain", "--untracked-files=no")
    if changes is not None:
        facts["git_dirty"] = str(bool(changes)).lower()
    return facts


def weights_facts(weights: Mapping[str, str | Path | None]) -> dict[str, str]:
    """Return ``{"weights_sha256.<name>": digest}`` of the given weights files; ``None`` is "not used".

    Raises:
        ConfigurationError: a file is missing.
    """
    facts = {}
    for name, path in weights.items():
        if path is None or not str(path):
            continue
        if not Path(path).is_file():
            raise ConfigurationError(f"weights '{name}': no file {path}. Correct the path or leave it out.")
        facts[tracked_name(f"weights_sha256.{name}")] = sha256_of_file(path)
    return facts


def device_name(device: torch.device | str) -> str:
    """Return for example ``"cpu"`` or ``"cuda:0 (NVIDIA H100 80GB HBM3)"``."""
    device = torch.device(device)
    if device.type != "cuda" or not torch.cuda.is_available():
        return str(device)
    return f"{device} ({torch.cuda.get_device_name(device)})"


def dataset_facts(
    directory: Path | str, split: str, protocol: str | Mapping[str, str] | None = None
) -> DatasetFacts:
    """Identify one split of a dataset folder, or several joined by "+", without reading its images.

    Args:
        directory: the dataset folder.
        split: ``"training"``, ``"validation"`` or ``"test"``, or several joined by "+".
        protocol: the named split in use, as in :func:`nucsam_monai.data.load_items`.

    Raises:
        DatasetError: there is no such folder, or its ``dataset.json`` can't be read.
    """
    directory = Path(directory).absolute()
    if not directory.is_dir():
        raise DatasetError(f"{directory}: no such dataset folder. Correct --dataset_dir.")
    digest = hashlib.sha256(f"{split}\n".encode())
    description = directory / "dataset.json"
    if not description.is_file():
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        for path in files:
            digest.update(f"{path.relative_to(directory).as_posix()}\t{path.stat().st_size}\n".encode())
        return DatasetFacts(directory.name, split, digest.hexdigest(), len(files), directory)
    content = description.read_bytes()
    try:
        document = json.loads(content)
    except ValueError as error:
        raise DatasetError(f"{description}: not valid JSON ({error}). Convert the dataset again.") from error
    if not isinstance(document, dict):
        raise DatasetError(
            f"{description}: expected an object with the splits, found {type(document).__name__}. "
            "Convert the dataset again."
        )
    digest.update(content)
    name = str(document.get("name") or directory.name)
    chosen = protocol.get(name) if isinstance(protocol, Mapping) else protocol
    if chosen:
        digest.update(chosen.encode())
    splits = document["protocols"][chosen] if chosen else document
    items = sum(len(splits.get(part) or ()) for part in split.split("+"))
    return DatasetFacts(name, split, digest.hexdigest(), items, directory, chosen or document.get("protocol"))


def _flat_items(params: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in params.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _flat_items(value, f"{name}.")
        elif _is_scalar(value):
            yield name, str(value)
        elif isinstance(value, (list, tuple)) and all(_is_scalar(item) for item in value):
            yield name, f"[{', '.join(map(str, value))}]"


def _is_scalar(value: Any) -> bool:
    return value is None or isinstance(
        value, (str, bool, int, float, Path, np.generic, torch.device, torch.dtype)
    )


def _is_number(value: Any) -> bool:
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return value.ndim == 0 or tuple(value.shape) == (1,)
    return isinstance(value, (bool, int, float, np.number, np.bool_))


def _git(folder: Path, *arguments: str) -> str | None:
    """Return the output of a read-only git command, ``None`` if it fails."""
    git = shutil.which("git")
    if git is None:
        return None
    # A repository's own configuration may name a program to watch its files; asking for a revision must not
    # start it.
    command = [git, "--no-optional-locks", "-c", "core.fsmonitor=false", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(  # noqa: S603
            command, capture_output=True, text=True, timeout=_GIT_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
