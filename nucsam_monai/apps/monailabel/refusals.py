"""Refuse requests with an HTTP status of the 400s."""

import errno
import json
import unicodedata
from collections.abc import Iterator
from typing import Any

from nucsam_monai.utils.errors import ImageReadError, NucSAMError

LONGEST_NAME = 200

_BAD_NAME_ERRORS = (errno.ENAMETOOLONG, errno.EISDIR, errno.ENOTDIR, errno.EINVAL)


class RequestRefusedError(NucSAMError):
    """Report a request that cannot be served as it is.

    Args:
        message: sentence that says what was found, what was expected and what to do.
        status: the HTTP status of the answer.
    """

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


def check_name(name: str, what: str) -> str:
    """Return a name that stays inside of the folder it is joined to.

    Args:
        name: an image's id, a file's name or the like.
        what: how error messages name it.

    Raises:
        RequestRefusedError: it is empty, too long or hidden, or has separators or control characters.

    Example:
        >>> check_name("slide 1.α", "image")
        'slide 1.α'
    """
    unprintable = any(unicodedata.category(character).startswith("C") for character in name)
    if not name or len(name) > LONGEST_NAME or name.startswith(".") or unprintable or set(name) & set("/\\"):
        raise RequestRefusedError(
            f"{what} {name[:LONGEST_NAME]!r}: expected the plain name of a file, of at most {LONGEST_NAME} "
            "characters, without a folder and without a dot at its start."
        )
    return name


def causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and those that it was raised from, the outermost first."""
    while error is not None:
        yield error
        error = error.__cause__


def refusal_of(error: BaseException) -> tuple[int, str] | None:
    """Return the HTTP status and the message for an exception, or None for one that is a fault of the server.

    MONAI wraps what a transform raises, so the causes are looked at too.
    """
    for cause in causes(error):
        if isinstance(cause, RequestRefusedError):
            return cause.status, str(cause)
        if isinstance(cause, ImageReadError):
            return 422, _without_folders(str(cause))
        if isinstance(cause, NucSAMError):
            return 400, _without_folders(str(cause))
        if isinstance(cause, json.JSONDecodeError):
            return 400, f"not readable as JSON: {cause}"
        if isinstance(cause, OSError) and cause.errno in _BAD_NAME_ERRORS:
            return 400, "a name of the request cannot be the name of a file."
        if isinstance(cause, ValueError) and "null byte" in str(cause):
            return 400, "a name of the request has a zero in it."
    return None


def _without_folders(message: str) -> str:
    """Leave of each absolute path only the file's name: clients need not know where a server keeps things."""
    words = (word.rsplit("/", 1)[-1] if word.startswith("/") else word for word in message.split(" "))
    return " ".join(words)


def json_object(content: bytes, what: str) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        RequestRefusedError: it is not one, or it is nested too deeply.
    """
    try:
        value = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise RequestRefusedError(
            f"{what}: not readable as JSON ({type(error).__name__}: {error})."
        ) from error
    if not isinstance(value, dict):
        raise RequestRefusedError(f"{what}: expected a JSON object, found {type(value).__name__}.")
    return value
