"""Find a bundle's folder, and the folder that data and outputs go to by default."""

import os
from pathlib import Path

from nucsam_monai.utils.errors import ConfigurationError

_PACKAGE_PARENT = Path(__file__).resolve().parents[2]


def bundle_root(name: str) -> str:
    """Return the absolute path of bundle ``name``, whatever the working directory is.

    Looked for, in this order: the working directory if it is the bundle itself, ``bundles/<name>`` below the
    working directory, ``<name>`` below the folder in the environment variable ``NUCSAM_BUNDLES``, and
    ``bundles/<name>`` next to the package (a source checkout or an editable install).

    Args:
        name: the bundle's folder name, for example ``"unsam"``.

    Returns:
        The absolute path as a string, because bundle configurations join strings.

    Raises:
        ConfigurationError: no such bundle in any of these places.
    """
    cwd = Path.cwd()
    candidates = [cwd] if cwd.name == name else []
    candidates.append(cwd / "bundles" / name)
    if os.environ.get("NUCSAM_BUNDLES"):
        candidates.append(Path(os.environ["NUCSAM_BUNDLES"]) / name)
    candidates.append(_PACKAGE_PARENT / "bundles" / name)
    for candidate in candidates:
        if (candidate / "configs" / "metadata.json").is_file():
            return str(candidate.resolve())
    looked_in = ", ".join(str(candidate) for candidate in candidates)
    raise ConfigurationError(
        f"bundle '{name}': no configs/metadata.json found in {looked_in}. "
        "Run from the project's folder, set NUCSAM_BUNDLES, or pass --bundle_root."
    )


def project_root() -> Path:
    """Return the folder that holds ``data/``, ``output/`` and ``mlflow.db`` by default.

    It is the source checkout where the package lies in one, else the working directory.
    """
    return _PACKAGE_PARENT if (_PACKAGE_PARENT / "pyproject.toml").is_file() else Path.cwd()


def script_or(script: str, function: str) -> str:
    """Return how a message names a script: by its path in a source checkout, else the function that does the same."""
    is_checkout = (_PACKAGE_PARENT / "scripts" / script).is_file()
    return f"python scripts/{script}" if is_checkout else f"{function} in Python"
