"""Walk a downloaded archive or an unpacked folder, archives in archives included."""

import hashlib
import os
import re
import stat
import tempfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import cached_property, lru_cache
from pathlib import Path
from shutil import copyfileobj
from typing import IO

from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import is_junk, sha256_of_file

MAX_MEMBER_BYTES = 1 << 30
"""Largest member that is read into memory at once."""

IMAGEJ_ARCHIVES = re.compile(r"(?:.*/)?imag[^/]*/.*\.zip", re.IGNORECASE)
"""Archives of outlines in folders such as ``Imagj_zips``, one per image: more than can be open at once."""

# No public nuclei archive comes near these; a decompression bomb is past both.
_SUSPICIOUS_TOTAL_BYTES = 1 << 30
_SUSPICIOUS_RATIO = 200
_BLOCK_BYTES = 1 << 20

_BAD_ZIP = (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError)


class Source(ABC):
    """Give access to files by name; files inside a zip archive are named ``<archive>/<member>``, at any depth.

    A source can be sent to another process, which opens it again.

    Attributes:
        path: the archive or folder.
        names: names of all files in it with forward slashes, sorted, without leftovers of operating systems.
    """

    path: Path
    names: tuple[str, ...]

    def __init__(self, path: Path, without: re.Pattern[str] | None = None) -> None:
        self.path = path
        self._without = without
        self._opened = ExitStack()
        self._archives: dict[str, _ZipSource] = {}
        try:
            own = tuple(name for name in self._own_names() if not (without and without.fullmatch(name)))
            for name in own:
                if name.lower().endswith(".zip"):
                    self._archives[name] = self._opened.enter_context(self._open_archive(name))
        except BaseException:
            self._opened.close()
            raise
        inner = (f"{name}/{member}" for name, archive in self._archives.items() for member in archive.names)
        self.names = tuple(sorted((*(name for name in own if name not in self._archives), *inner)))

    def __reduce__(self) -> tuple[Callable[..., "Source"], tuple[Path, re.Pattern[str] | None]]:
        """Send only what opens it again to another process."""
        return _opened_here, (self.path, self._without)

    @contextmanager
    def open(self, name: str) -> Iterator[IO[bytes]]:
        """Open one file to be read from its beginning; for files that are too large to be held.

        Raises:
            DatasetError: the file is damaged.
        """
        for outer, archive in self._archives.items():
            if name.startswith(f"{outer}/"):
                with archive.open(name.removeprefix(f"{outer}/")) as file:
                    yield file
                return
        try:
            with self._open_own(name) as file:
                yield file
        except _BAD_ZIP as error:
            raise DatasetError(
                f"{self.where(name)} is damaged or unreadable ({error}). Download the archive again."
            ) from error

    def read(self, name: str) -> bytes:
        """Return the content of one file.

        Raises:
            DatasetError: the file is damaged or larger than :data:`MAX_MEMBER_BYTES`.
        """
        with self.open(name) as file:
            content = file.read(MAX_MEMBER_BYTES + 1)
        if len(content) > MAX_MEMBER_BYTES:
            raise DatasetError(f"{self.where(name)} is larger than {MAX_MEMBER_BYTES >> 20} MiB; refused.")
        return content

    @cached_property
    def sha256(self) -> str:
        """The digest that identifies the source: of the archive, or of the listing of a folder's files."""
        return self._digest()

    def match(self, pattern: re.Pattern[str]) -> Iterator[tuple[str, re.Match[str]]]:
        """Yield ``(name, match)`` for the names that ``pattern`` matches completely, in sorted order."""
        for name in self.names:
            if found := pattern.fullmatch(name):
                yield name, found

    def where(self, name: str) -> str:
        """Return how an error message calls a file of this source."""
        return f"{self.path.name}: {name}"

    def refusal(self, title: str, layout: str) -> DatasetError:
        """Return the error for a source without any file of a dataset.

        Args:
            title: what was expected, for example ``"a TNBC archive"``.
            layout: the expected names.
        """
        return DatasetError(f"{self.path}: not {title}, expected {layout}; first file: {self.names[0]}.")

    def close(self) -> None:
        """Close the archive and those in it."""
        self._opened.close()

    @abstractmethod
    def _own_names(self) -> Iterator[str]: ...

    @abstractmethod
    def _open_own(self, name: str) -> IO[bytes]: ...

    @abstractmethod
    def _open_archive(self, name: str) -> AbstractContextManager["_ZipSource"]: ...

    @abstractmethod
    def _digest(self) -> str: ...


class _ZipSource(Source):
    """A zip archive. Its members are never unpacked to their own names.

    Raises:
        DatasetError: the file is missing, truncated or not a zip archive, or the archive is hostile: a member
            has an absolute name, leaves the archive with ``..``, is a link, is encrypted, occurs twice, or
            the sizes are those of a decompression bomb.
    """

    def __init__(self, path: Path, without: re.Pattern[str] | None = None) -> None:
        try:
            self._zip = zipfile.ZipFile(path)
        except _BAD_ZIP as error:
            raise DatasetError(_why_not_a_zip(path)) from error
        try:
            super().__init__(path, without)
        except BaseException:
            self._zip.close()
            raise
        self._opened.callback(self._zip.close)

    def _open_own(self, name: str) -> IO[bytes]:
        return self._zip.open(name)

    @contextmanager
    def _open_archive(self, name: str) -> "Iterator[_ZipSource]":
        """Open an archive inside this one, from a nameless copy on disk: zip archives are read out of order."""
        with tempfile.TemporaryDirectory() as folder:
            copy = Path(folder) / name.rpartition("/")[2]
            with self._zip.open(name) as packed, copy.open("wb") as file:
                copyfileobj(packed, file, _BLOCK_BYTES)
            with closing(_ZipSource(copy, self._without)) as archive:
                yield archive

    def _digest(self) -> str:
        return sha256_of_file(self.path)

    def _own_names(self) -> Iterator[str]:
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


class _FolderSource(Source):
    """An unpacked archive, or a folder of archives. Links to folders are not followed."""

    def _own_names(self) -> Iterator[str]:
        files = (Path(folder) / name for folder, _, names in os.walk(self.path) for name in names)
        relative = (file.relative_to(self.path).as_posix() for file in files)
        return (name for name in relative if not is_junk(name))

    def _open_own(self, name: str) -> IO[bytes]:
        return (self.path / name).open("rb")

    def _open_archive(self, name: str) -> AbstractContextManager["_ZipSource"]:
        return closing(_ZipSource(self.path / name, self._without))

    def _digest(self) -> str:
        """Return the digest of the lines ``<sha256>  <name>`` of all files, as sha256sum prints them."""
        digest = hashlib.sha256()
        for name in sorted(self._own_names()):
            digest.update(f"{sha256_of_file(self.path / name)}  {name}\n".encode())
        return digest.hexdigest()


@contextmanager
def open_source(path: Path | str, *, without: re.Pattern[str] | None = None) -> Iterator[Source]:
    """Open a zip archive or an unpacked folder.

    Args:
        path: the archive or folder.
        without: files whose whole name it matches are left out; archives among them are not opened.

    Raises:
        DatasetError: ``path`` is neither, is empty, or is a damaged or hostile archive.

    Example:
        >>> with open_source("stage1_train.zip") as source:  # doctest: +SKIP
        ...     png = source.read(source.names[0])
    """
    path = Path(path)
    with closing(_opened_source(path, without)) as source:
        if not source.names:
            raise DatasetError(
                f"{path}: holds no files. Pass the downloaded archive or the folder unpacked from it."
            )
        yield source


def _opened_source(path: Path, without: re.Pattern[str] | None) -> Source:
    return _FolderSource(path, without) if path.is_dir() else _ZipSource(path, without)


@lru_cache(maxsize=16)
def _opened_here(path: Path, without: re.Pattern[str] | None) -> Source:
    """Return a source that came from another process; it stays open as long as this process."""
    return _opened_source(path, without)


def source_digests(*sources: Source) -> dict[str, str]:
    """Return ``{file name: sha256}``; equal names are distinguished by their folder."""
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
