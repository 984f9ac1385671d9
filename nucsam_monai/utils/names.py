"""Check names that users give: classes, domains, choices."""

from collections.abc import Sequence
from typing import Literal, get_args

from nucsam_monai.utils.errors import ConfigurationError

Fit = Literal["tile", "resize"]
"""How an image of any size meets a network of one: cut into tiles of that size, or stretched to it."""


def check_fit(fit: Fit) -> None:
    """Raise a :class:`ConfigurationError` unless ``fit`` is one of :data:`Fit`."""
    if fit not in get_args(Fit):
        raise ConfigurationError(f"fit '{fit}': expected one of {', '.join(get_args(Fit))}.")


def distinct_names(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the names after checking that there is at least one and none occurs twice.

    Args:
        names: list of names; a single string is an error, because it would be read letter by letter.
        what: name of the option for the error message.

    Raises:
        ConfigurationError: there is no name, a name occurs twice, or ``names`` is a string.

    Example:
        >>> distinct_names(["tumour", "stroma"], "class_names")
        ('tumour', 'stroma')
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ConfigurationError(
            f"{what}: expected a list of different names, at least one; found {names!r}."
        )
    return tuple(names)


def counted(number: int, what: str) -> str:
    """Format a count with its noun.

    Example:
        >>> counted(1, "image"), counted(2, "image")
        ('1 image', '2 images')
    """
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
