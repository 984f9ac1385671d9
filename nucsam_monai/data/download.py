"""Downloads that can be resumed, are checked, and appear under their name only when they are right."""

import http.client
import logging
import re
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path

from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.https import HttpsClient, RangeNotSatisfiableError, TransientTransferError
from nucsam_monai.data.partial_file import Origin, PartialFile
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import sha256_of_file

_BLOCK_BYTES = 1 << 20
_OK = 200
_PARTIAL_CONTENT = 206
_LONGEST_WAIT_S = 60.0
_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_SHA256 = re.compile(r"[0-9a-f]{64}")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Patience:
    """How long a download is tried before it gives up.

    Attributes:
        attempts: connections at most; each goes on where the last one broke.
        first_wait_s: seconds before the second attempt, doubled before every further one up to 60.
        timeout_s: seconds without a byte after which a connection counts as broken.
    """

    attempts: int = 6
    first_wait_s: float = 1.0
    timeout_s: float = 30.0


def download(
    url: str,
    target: Path | str,
    *,
    sha256: str,
    max_bytes: int,
    patience: Patience = Patience(),
    plain_http_hosts: Collection[str] = (),
) -> bool:
    """Download a file whose digest is known, or do nothing if it is there already.

    What arrives is kept in ``<target>.part``. After an interruption the next call goes on from there, provided
    that the server still holds the same version (HTTP ``Range`` with ``If-Range``, RFC 9110, section 13.1.5); it
    starts anew otherwise. One process at a time may download a file.

    Args:
        url: an https address; redirects must be https, too.
        target: where the file goes; parent folders are made.
        sha256: the digest that it must have, in lower-case hexadecimal digits.
        max_bytes: a longer file is refused.
        patience: attempts, waits and timeout.
        plain_http_hosts: hosts that may be asked without encryption, such as a server on ``127.0.0.1``.

    Returns:
        Whether anything was downloaded.

    Raises:
        ConfigurationError: ``sha256`` is not a digest.
        DatasetError: ``target`` exists with another digest, the server refuses, every attempt broke, the disk
            is full, or what arrived is not the expected file; in this last case it is removed.

    Example::

        download(hosted.url, Path("downloads") / hosted.name, sha256=hosted.sha256, max_bytes=hosted.max_bytes)
    """
    if not _SHA256.fullmatch(sha256):
        raise ConfigurationError(f"sha256 '{sha256}': expected 64 lower-case hexadecimal digits.")
    target = Path(target)
    if target.exists():
        _check_present(target, sha256)
        return False
    part = PartialFile(target)
    _fetch(HttpsClient(patience.timeout_s, plain_http_hosts), url, part, max_bytes, patience)
    found = sha256_of_file(part.body)
    if found != sha256:
        part.discard()
        raise DatasetError(
            f"{url}: what arrived has sha256 {found}, expected {sha256}; it was removed. Try again; if the digest "
            "stays the same, the publisher has replaced the file."
        )
    part.become(target)
    return True


def _check_present(target: Path, sha256: str) -> None:
    found = sha256_of_file(target) if target.is_file() else "of no file"
    if found != sha256:
        raise DatasetError(
            f"{target}: exists already with sha256 {found}, expected {sha256}. Move it away or choose another folder."
        )


def _fetch(client: HttpsClient, url: str, part: PartialFile, max_bytes: int, patience: Patience) -> None:
    """Attempt the transfer until the file is complete."""
    for attempt in range(1, patience.attempts + 1):
        try:
            _transfer(client, url, part, max_bytes)
        except TransientTransferError as error:
            if isinstance(error, RangeNotSatisfiableError):
                part.discard()
            if attempt == patience.attempts:
                raise DatasetError(
                    f"{url}: gave up after {attempt} attempts, the last one failed with: {error}. "
                    f"Run the same command again to go on from {part.size:,} bytes."
                ) from error
            wait = min(max(patience.first_wait_s * 2 ** (attempt - 1), error.wait_s or 0.0), _LONGEST_WAIT_S)
            _logger.warning("%s: %s; next attempt in %.0f s.", url, error, wait)
            time.sleep(wait)
        else:
            return


def _transfer(client: HttpsClient, url: str, part: PartialFile, max_bytes: int) -> None:
    """Open one connection and write what it delivers.

    Raises:
        TransientTransferError: the file is not complete yet.
    """
    known = part.origin()
    if known and (known.url != url or not known.validator):
        known = None
    if known and known.total_bytes == part.size:
        return
    headers = {"Range": f"bytes={part.size}-", "If-Range": known.validator} if known else {}
    with client.get(url, headers) as response:
        if known and response.status == _PARTIAL_CONTENT:
            _check_continuation(response, known, part)
            _logger.info("%s: goes on after %s bytes.", url, f"{part.size:,}")
            origin = known
        elif response.status == _OK:
            if known:
                _logger.info("%s: starts anew; the server has another version or cannot go on.", url)
            origin = Origin(url, _validator(response), response.length)
            part.restart(origin)
        else:
            raise TransientTransferError(f"the server answered HTTP {response.status} to a plain request")
        if (origin.total_bytes or 0) > max_bytes:
            part.discard()
            raise DatasetError(f"{url}: {origin.total_bytes:,} bytes, expected at most {max_bytes:,}.")
        blocks = (
            -(-(origin.total_bytes - part.size) // _BLOCK_BYTES) if origin.total_bytes is not None else None
        )
        part.append(with_progress(_blocks(response), part.body.stem, "MiB", blocks), max_bytes)
    if origin.total_bytes is not None and part.size < origin.total_bytes:
        raise TransientTransferError(
            f"the connection ended after {part.size:,} of {origin.total_bytes:,} bytes"
        )


def _blocks(response: HTTPResponse) -> Iterator[bytes]:
    try:
        while block := response.read(_BLOCK_BYTES):
            yield block
    except (OSError, http.client.HTTPException) as error:
        raise TransientTransferError(f"the connection broke ({error!r})") from error


def _check_continuation(response: HTTPResponse, known: Origin, part: PartialFile) -> None:
    """Check that the bytes of a 206 follow those on disk and are of the same version.

    Raises:
        TransientTransferError: they are not; what is on disk was removed.
    """
    stated = response.headers.get("Content-Range", "")
    found = _CONTENT_RANGE.fullmatch(stated)
    fits = found is not None and int(found[1]) == part.size and found[2] in ("*", str(known.total_bytes))
    # A server may honour Range and overlook If-Range.
    if not fits or (_validator(response) or known.validator) != known.validator:
        part.discard()
        raise TransientTransferError(f"the server went on with something else ('{stated}')")


def _validator(response: HTTPResponse) -> str:
    etag = response.headers.get("ETag", "")
    if etag and not etag.startswith("W/"):
        return etag
    return response.headers.get("Last-Modified", "")
