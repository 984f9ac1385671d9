"""Check names that users give: classes, domains."""

from collections.abc import Sequence

from nucsam_monai.utils.errors import ConfigurationError


def distinct_names(names: Sequence[str], what: str) -> tuple[str, ...]:
    """Return the names, at least one and no two the same.

    Args:
        names: a list; a single string is refused, it would be taken letter by letter.
        what: the option that holds them, for the message.

    Raises:
        ConfigurationError: no name, one named twice, or a string.

    Example:
        >>> distinct_names(["tumour", "stroma"], "class_names")
        ('tumour', 'stroma')
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names):
        raise ConfigurationError(
            f"{what}: expected a list of different names, at least one; found {names!r}."
        )
    return tuple(names)
