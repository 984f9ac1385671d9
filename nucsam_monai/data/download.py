"""Download the archives that their publishers offer without an account or a form, and check their digests."""

import re
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import atomic_path, sha256_of_file

if TYPE_CHECKING:
    from requests import Response

_SHA256 = re.compile(r"[0-9a-f]{64}")
_ATTEMPTS = 4
_FIRST_WAIT_S = 1.0  # doubled before every further attempt
_TIMEOUT_S = 30.0  # without a byte
_TRANSIENT_STATUS = frozenset({408, 425, 429})
_PLAIN_HTTP_HOSTS: frozenset[str] = frozenset()  # tests have a server on 127.0.0.1


@dataclass(frozen=True)
class HostedFile:
    """Describe a file on its publisher's server, with its size and SHA-256.

    Attributes:
        url: address of the file.
        name: name of the file.
        sha256: digest of the file.
        max_bytes: a longer answer is not this file.
    """

    url: str
    name: str
    sha256: str
    max_bytes: int


HOSTED_FILES: Mapping[str, HostedFile] = {
    # Neither publisher states a SHA-256. These are the digests that others took of their own downloads:
    # - 82,923,446 bytes in the Git LFS pointer stage1_train.zip of
    #   https://github.com/rishilImperialX/nucleus_segmented_dataset (commit e9f702d2), the same digest in
    #   https://github.com/fsantibanezleal/CAOS_FrothSeg, data/derived/real-adjacent-dataset-manifest.json
    #   (commit 1e7e8674; 670 images);
    "dsb2018": HostedFile(
        url="https://data.broadinstitute.org/bbbc/BBBC038/stage1_train.zip",
        name="stage1_train.zip",
        sha256="dcb6edc2690f137406638b2309581a71522c4dff19157d118453b448dcddcb68",
        max_bytes=82_923_446,
    ),
    # - https://github.com/constantinpape/torch-em, torch_em/data/datasets/histopathology/tnbc.py (commit
    #   00532652), for this very URL. Its number of bytes is not stated there, hence the generous limit;
    #   version 1.1 of the dataset (https://zenodo.org/records/2579118) is another file of 25,232,361 bytes.
    "tnbc": HostedFile(
        url="https://zenodo.org/records/1175282/files/TNBC_NucleiSegmentation.zip",
        name="TNBC_NucleiSegmentation.zip",
        sha256="da708c3a988f4ad4b9bbb9283b387faf703f0bc0e5e689927306bd27ea13a57f",
        max_bytes=200_000_000,
    ),
}
"""``{dataset name: file}``; the other datasets are given out by form, by account or by a file-sharing page."""


def hosted_file(dataset: str) -> HostedFile:
    """Return the file of a dataset that can be downloaded.

    Raises:
        ConfigurationError: the dataset is not openly hosted.
    """
    if dataset not in HOSTED_FILES:
        raise ConfigurationError(
            f"dataset '{dataset}': only {', '.join(HOSTED_FILES)} can be downloaded. "
            "'list' says where to get the others."
        )
    return HOSTED_FILES[dataset]


def download(url: str, target: Path | str, *, sha256: str, max_bytes: int) -> bool:
    """Download a file whose digest is known, or do nothing if it is already there.

    The file gets its name only when it is complete and has the expected digest. Interrupted downloads are tried again
    from the beginning.

    Args:
        url: an https address; redirects must be https, too.
        target: path to write to; parent folders are created.
        sha256: the digest that it must have, in lower-case hexadecimal digits.
        max_bytes: largest size of the file.

    Returns:
        Whether the file was downloaded.

    Raises:
        ConfigurationError: ``sha256`` is not a digest, or a package of the extra ``train`` is missing.
        DatasetError: ``target`` exists with another digest, the server refuses, every attempt failed, the disk is
            full, or what arrived is not the expected file.

    Example::

        download(hosted.url, Path("downloads") / hosted.name, sha256=hosted.sha256, max_bytes=hosted.max_bytes)
    """
    if not _SHA256.fullmatch(sha256):
        raise ConfigurationError(f"sha256 '{sha256}': expected 64 lower-case hexadecimal digits.")
    _check_scheme(url)
    target = Path(target)
    if target.exists():
        found = sha256_of_file(target) if target.is_file() else "of no file"
        if found != sha256:
            raise DatasetError(
                f"{target}: exists already with sha256 {found}, expected {sha256}. Move it away or choose another "
                "folder."
            )
        return False
    try:
        with atomic_path(target) as arriving:
            _fetch(url, arriving, max_bytes)
            found = sha256_of_file(arriving)
            if found != sha256:
                raise DatasetError(
                    f"{url}: what arrived has sha256 {found}, expected {sha256}; it was removed. Try again; if the "
                    "digest stays the same, the publisher has replaced the file."
                )
    except OSError as error:
        cause = error.__cause__ if isinstance(error.__cause__, OSError) else error
        raise DatasetError(
            f"{target}: cannot be written ({cause.strerror}). Make room or name another folder."
        ) from error
    return True


def _fetch(url: str, path: Path, max_bytes: int) -> None:
    """Write what the server sends to ``path``; an attempt that fails starts again after a while."""
    try:
        import requests
        from pooch import HTTPDownloader
    except ImportError as error:
        raise ConfigurationError(
            f"downloads need {error.name}, which is not installed. Run: pip install 'nucsam-monai[train]'."
        ) from error
    downloader = HTTPDownloader(
        progressbar=sys.stderr.isatty(),
        timeout=_TIMEOUT_S,
        hooks={"response": partial(_check_response, max_bytes=max_bytes)},
    )
    for attempt in range(1, _ATTEMPTS + 1):
        try:
            return downloader(url, str(path), None)
        except requests.exceptions.SSLError as error:
            raise DatasetError(
                f"{url}: no trusted connection ({error}). Check the clock and the certificates of this machine."
            ) from error
        except requests.RequestException as error:
            if attempt == _ATTEMPTS:
                raise DatasetError(
                    f"{url}: gave up after {attempt} attempts, the last one failed with: {error}. Try again later, or "
                    "get the file with a browser and pass it as --source."
                ) from error
            time.sleep(_FIRST_WAIT_S * 2 ** (attempt - 1))
    return None


def _check_response(response: "Response", *, max_bytes: int, **_: Any) -> None:
    """Refuse answers that another attempt would not change, and redirects before they are followed."""
    if response.is_redirect:
        _check_scheme(urljoin(response.url, response.headers["Location"]))
    elif 400 <= response.status_code < 500 and response.status_code not in _TRANSIENT_STATUS:
        raise DatasetError(
            f"{response.url}: the server answered HTTP {response.status_code} {response.reason}. Get the file with a "
            "browser and pass it as --source."
        )
    elif int(response.headers.get("Content-Length", 0)) > max_bytes:
        stated = int(response.headers["Content-Length"])
        raise DatasetError(f"{response.url}: {stated:,} bytes, expected at most {max_bytes:,}.")


def _check_scheme(url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _PLAIN_HTTP_HOSTS):
        raise DatasetError(f"{url}: not an https address, so nothing is downloaded from there.")
