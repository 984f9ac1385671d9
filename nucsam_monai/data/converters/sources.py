"""Walking a downloaded archive or an unpacked folder, whatever it holds, without writing a file of it."""

import hashlib
import os
import re
import stat
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path

from nucsam_monai.data.junk import is_junk
from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import sha256_of_file

MAX_MEMBER_BYTES = 1 << 30
"""Largest member that is read into memory at once."""

# No public nuclei archive comes near these; a decompression bomb is past both.
_SUSPICIOUS_TOTAL_BYTES = 1 << 30
_SUSPICIOUS_RATIO = 200

_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class Source(ABC):
    """Files by name, read as bytes.

    Attributes:
        path: the archive or folder.
        names: names of all files in it with forward slashes, sorted, without leftovers of operating systems.
    """

    path: Path
    names: tuple[str, ...]

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Return the content of one file.

        Raises:
            DatasetError: the file is damaged or larger than :data:`MAX_MEMBER_BYTES`.
        """

    @cached_property
    def sha256(self) -> str:
        """The digest that identifies the source: of the archive, or of the listing of a folder's files."""
        return self._digest()

    @abstractmethod
    def _digest(self) -> str: ...

    def match(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
        """Yield ``(name, match)`` for the names that ``pattern`` matches completely, in sorted order."""
        for name in self.names:
            if found := pattern.fullmatch(name):
                yield name, found

    def where(self, name: str) -> str:
        """Return how an error message calls a file of this source."""
        return f"{self.path.name}: {name}"


class ZipSource(Source):
    """A zip archive. Its members are read as bytes and never unpacked to their own names.

    Raises:
        DatasetError: the file is missing, truncated or not a zip archive, or the archive is hostile: a member
            has an absolute name, leaves the archive with ``..``, is a link, is encrypted, occurs twice, or
            the sizes are those of a decompression bomb.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._zip = zipfile.ZipFile(path)
        except _BAD_ZIP as error:
            raise DatasetError(_why_not_a_zip(path)) from error
        try:
            self.names = tuple(sorted(self._checked_names()))
        except DatasetError:
            self._zip.close()
            raise

    def read(self, name: str) -> bytes:  # noqa: D102 - said by Source
        if self._zip.getinfo(name).file_size > MAX_MEMBER_BYTES:
            raise DatasetError(f"{self.where(name)} is larger than {MAX_MEMBER_BYTES >> 20} MiB; refused.")
        try:
            return self._zip.read(name)
        except _BAD_ZIP as error:
            raise DatasetError(
                f"{self.where(name)} is damaged ({error}). Download the archive again."
            ) from error

    def _digest(self) -> str:
        return sha256_of_file(self.path)

    def close(self) -> None:
        """Close the archive."""
        self._zip.close()

    def _checked_names(self) -> Iterator[str]:
        seen: set[str] = set()
        total = 0
        for member in self._zip.infolist():
            name = member.filename
            reason = _why_hostile(member)
            # Two names that differ in letter case only are one file on half of all computers.
            if not member.is_dir() and name.lower() in seen:
                reason = "it occurs twice"
            if reason:
                raise DatasetError(
                    f"{self.where(repr(name))} is refused: {reason}. Do not trust this archive."
                )
            seen.add(name.lower())
            total += member.file_size
            if not member.is_dir() and not is_junk(name):
                yield name
        size = max(1, self.path.stat().st_size)
        if total > _SUSPICIOUS_TOTAL_BYTES and total / size > _SUSPICIOUS_RATIO:
            raise DatasetError(
                f"{self.path.name}: {size >> 10} KiB claim to unpack to {total >> 20} MiB; "
                "refused as a decompression bomb."
            )


class FolderSource(Source):
    """An unpacked archive. Links to folders are not followed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = (Path(folder) / name for folder, _, names in os.walk(path) for name in names)
        relative = (file.relative_to(path).as_posix() for file in files)
        self.names = tuple(sorted(name for name in relative if not is_junk(name)))

    def read(self, name: str) -> bytes:  # noqa: D102 - said by Source
        file = self.path / name
        try:
            if file.stat().st_size > MAX_MEMBER_BYTES:
                raise DatasetError(
                    f"{self.where(name)} is larger than {MAX_MEMBER_BYTES >> 20} MiB; refused."
                )
            return file.read_bytes()
        except OSError as error:
            raise DatasetError(f"{self.where(name)} cannot be read ({error.strerror}).") from error

    def _digest(self) -> str:
        """Return the digest of the lines ``<sha256>  <name>`` of all files, as sha256sum prints them."""
        digest = hashlib.sha256()
        for name in self.names:
            digest.update(f"{hashlib.sha256(self.read(name)).hexdigest()}  {name}\n".encode())
        return digest.hexdigest()


@contextmanager
def open_source(path: Path | str) -> Iterator[Source]:
    """Open a zip archive or an unpacked folder.

    Raises:
        DatasetError: ``path`` is neither, is empty, or is a damaged or hostile archive.

    Example:
        >>> with open_source("stage1_train.zip") as source:  # doctest: +SKIP
        ...     png = source.read(source.names[0])
    """
    path = Path(path)
    source: ZipSource | FolderSource = FolderSource(path) if path.is_dir() else ZipSource(path)
    try:
        if not source.names:
            raise DatasetError(
                f"{path}: holds no files. Pass the downloaded archive or the folder unpacked from it."
            )
        yield source
    finally:
        if isinstance(source, ZipSource):
            source.close()


def source_digests(*sources: Source) -> dict[str, str]:
    """Return ``{file name: sha256}``; names that are not distinct are told apart by their folder."""
    names = [source.path.name for source in sources]
    return {
        name if names.count(name) == 1 else f"{source.path.absolute().parent.name}/{name}": source.sha256
        for name, source in zip(names, sources, strict=True)
    }


def _why_not_a_zip(path: Path) -> str:
    if not path.exists():
        return f"{path}: no such file or folder."
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        return f"{path}: cannot be read ({error.strerror})."
    if start == b"PK\x03\x04":
        return f"{path}: the zip archive is truncated or damaged. Download it again."
    return f"{path}: not a zip archive (first bytes: {start.hex() or 'none'}). Download it again."


def _why_hostile(member: zipfile.ZipInfo) -> str:
    """Return why a member must not be in an honest archive; empty where nothing is wrong."""
    name = member.filename
    if name.startswith("/") or re.match(r"[A-Za-z]:", name):
        return "its name is absolute"
    if "\\" in name:
        return "its name has a backslash, which is a separator on some systems only"
    if ".." in name.split("/"):
        return "its name leaves the archive"
    if any(ord(character) < 32 for character in name):
        return "its name has control characters"
    kind = stat.S_IFMT(member.external_attr >> 16)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "it is a link or a device"
    if member.flag_bits & 1:
        return "it is encrypted"
    return ""
