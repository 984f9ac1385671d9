"""Find a bundle's folder and its weights, and the folder that data and outputs go to by default."""

import os
from pathlib import Path

from nucsam_monai.utils.errors import CheckpointError, ConfigurationError

_PACKAGE = Path(__file__).resolve().parents[1]
_PACKAGE_PARENT = _PACKAGE.parent


def bundle_root(name: str) -> str:
    """Find the folder of a bundle.

    These places are searched in order: the working directory if it is the bundle itself, ``bundles/<name>`` in the
    working directory, ``<name>`` in the folder that the environment variable ``NUCSAM_BUNDLES`` names,
    ``bundles/<name>`` next to the package (a source checkout), and ``bundles/<name>`` in the package (an installed
    wheel).

    Args:
        name: folder name of the bundle, for example ``"unsam"``.

    Returns:
        The absolute path as a string, because bundle configurations join strings.

    Raises:
        ConfigurationError: the bundle is in none of these places.
    """
    cwd = Path.cwd()
    candidates = [cwd] if cwd.name == name else []
    candidates += [folder / name for folder in _bundle_folders()]
    for candidate in candidates:
        if (candidate / "configs" / "metadata.json").is_file():
            return str(candidate.resolve())
    known = ", ".join(folder.name for folder in bundles()) or "none"
    looked_in = ", ".join(dict.fromkeys(str(candidate.parent) for candidate in candidates))
    raise ConfigurationError(
        f"bundle '{name}': not found. The bundles in {looked_in} are {known}. Correct the name, set NUCSAM_BUNDLES to "
        "the folder of your own bundles, or pass --bundle_root."
    )


def _bundle_folders() -> list[Path]:
    named = os.environ.get("NUCSAM_BUNDLES")
    chosen = [Path(named)] if named else []
    return [Path.cwd() / "bundles", *chosen, _PACKAGE_PARENT / "bundles", _PACKAGE / "bundles"]


def bundles() -> list[Path]:
    """Return the folders of all bundles that :func:`bundle_root` finds, by name."""
    found: dict[str, Path] = {}
    for folder in _bundle_folders():
        for metadata in folder.glob("*/configs/metadata.json"):
            found.setdefault(metadata.parents[1].name, metadata.parents[1].resolve())
    return [found[name] for name in sorted(found)]


def find_weights(folder: Path, weights: str | Path) -> Path:
    """Return the weights file for a short name or a path.

    Args:
        folder: folder of the bundle.
        weights: ``"he"`` for ``models/compact_he.safetensors``, or a path.

    Raises:
        CheckpointError: there are none; the message lists those of the bundle.
    """
    shipped = folder / "models" / f"compact_{weights}.safetensors"
    if Path(weights).name == str(weights) and shipped.is_file():
        return shipped
    if not Path(weights).exists():
        raise CheckpointError(
            f"weights '{weights}': neither a file nor a short name of pretrained weights. {weights_there(folder)}"
        )
    return Path(weights)


def trained_weights(folder: Path) -> Path | None:
    """Return the weights that a training wrote into a folder: a file, or the folder of its two parts.

    None if the training is not finished, or was none.
    """
    parts = [folder / f"{part}.safetensors" for part in ("prompter", "segmentor")]
    if (folder / "model.safetensors").is_file():
        return folder / "model.safetensors"
    return folder if all(part.is_file() for part in parts) else None


def weights_there(folder: Path) -> str:
    """Describe the weights in a bundle's folder in a sentence."""
    files = sorted(file for part in ("models", "output") for file in (folder / part).rglob("*.safetensors"))
    weights = [str(file.relative_to(folder)) for file in files if "state" not in file.stem]
    if not weights:
        return f"There are none in {folder}: train the bundle, or pass the path of its weights."
    return f"In {folder} there are {', '.join(weights)}."


def scripts_folder() -> Path:
    """Return the folder of the scripts: that of the source checkout, or that of an installed wheel."""
    return next(folder / "scripts" for folder in (_PACKAGE_PARENT, _PACKAGE) if (folder / "scripts").is_dir())


def project_root() -> Path:
    """Return the folder that holds ``data/``, ``output/`` and ``mlflow.db`` by default.

    It is the source checkout where the package lies in one, else the working directory.
    """
    return _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").is_file() else Path.cwd()
