"""Define the errors that this package raises for wrong input.

A message says what was found, where, what was expected and what to do, for example::

    stage1_train.zip: not a zip archive (first bytes: 3c21444f). Download it again.
"""


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
