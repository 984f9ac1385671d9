"""Define the family of errors that this package raises for wrong input.

A message says what was found, where, what was expected and what to do, for example::

    stage1_train.zip: not a zip archive (first bytes: 3c21444f). Download it again.
"""

from importlib.util import find_spec


class NucSAMError(Exception):
    """Base of all errors that are caused by input, files or configuration rather than by a bug.

    Attributes:
        exit_code: of a command that ends with the error.
    """

    exit_code = 1


class DatasetError(NucSAMError):
    """A dataset folder, an archive or an annotation is missing, damaged or of a foreign layout."""


class ImageReadError(NucSAMError):
    """An image file is missing, damaged or has a shape or type that cannot be segmented."""


class FailedImagesError(ImageReadError):
    """Some of the images that were to be segmented could not be; all others were."""

    exit_code = 3


class CheckpointError(NucSAMError):
    """A weights file does not belong to the model it is loaded into, or is damaged."""


class ConfigurationError(NucSAMError, ValueError):
    """A configuration value or argument is not one of those allowed."""


class OutputError(NucSAMError, OSError):
    """A file or folder can't be written: the disk is full, read-only or of another user."""


def require_package(package: str, what: str, extra: str = "systems") -> None:
    """Refuse what needs a package that is not installed.

    Args:
        package: name to import it by.
        what: needs it.
        extra: of this package that installs it.

    Raises:
        ConfigurationError: the package is not installed.
    """
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise ConfigurationError(
            f"{what}: {name} is not installed. Run: pip install 'nucsam-monai[{extra}]'."
        )
