"""Define the errors that this package raises for wrong input.

A message says what was found, where, what was expected and what to do, for example::

    stage1_train.zip: not a zip archive (first bytes: 3c21444f). Download it again.
"""

from importlib.util import find_spec


class NucSAMError(Exception):
    """Base class of all errors that are caused by input, files or configuration rather than by a bug.

    Attributes:
        exit_code: exit code of a command that ends with this error.
    """

    exit_code = 1


class DatasetError(NucSAMError):
    """A dataset folder, an archive or an annotation is missing, damaged or has another layout."""


class ImageReadError(NucSAMError):
    """An image file is missing or damaged, or its shape or type cannot be segmented."""


class FailedImagesError(ImageReadError):
    """Some images could not be segmented; all others were."""

    exit_code = 3


class CheckpointError(NucSAMError):
    """A weights file is missing or damaged, or belongs to another network."""


class ConfigurationError(NucSAMError, ValueError):
    """A configuration value or an argument is not allowed."""


class OutputError(NucSAMError, OSError):
    """A file or folder cannot be written, because the disk is full or read-only or permission is missing."""


def require_package(package: str, what: str, extra: str = "systems") -> None:
    """Check that a package is installed.

    Args:
        package: import name of the package.
        what: feature that needs it, for the error message.
        extra: extra of this package that installs it.

    Raises:
        ConfigurationError: the package is not installed.
    """
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise ConfigurationError(
            f"{what}: {name} is not installed. Run: pip install 'nucsam-monai[{extra}]'."
        )
