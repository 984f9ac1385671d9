"""Write files that are complete or absent: write next to the target, flush, rename."""

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from nucsam_monai.utils.errors import OutputError

# What a full, read-only or failing disk says, as distinct from faults of what is read while a file is written.
_OF_THE_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_JUNK_NAMES = {".ds_store", "thumbs.db", "desktop.ini"}


@contextmanager
def atomic_path(path: Path | str) -> Iterator[Path]:
    r"""Yield a temporary path next to ``path``, renamed to ``path`` when the block ends without an error.

    The temporary name keeps the suffix, because some writers choose the format by it. Parent folders are created. On
    an error the temporary file is removed and an existing ``path`` is not modified.

    Raises:
        OutputError: the file can't be written.

    Example:
        >>> with atomic_path("out/table.csv") as temporary:  # doctest: +SKIP
        ...     _ = temporary.write_text("id,area_px\n")
    """
    path = Path(path)
    with naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with naming(path, _OF_THE_DISK):
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_files(folder: Path | str, names: Mapping[str, str]) -> Iterator[dict[str, Path]]:
    """Yield temporary paths of files that appear in ``folder`` together when the block ends without an error.

    Args:
        folder: folder for the files; created if missing.
        names: file names by kind.

    Raises:
        OutputError: the files can't be written.
    """
    folder = Path(folder)
    with naming(folder):
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder))
    try:
        with naming(folder, _OF_THE_DISK):
            yield {kind: temporary / name for kind, name in names.items()}
            for name in names.values():
                (temporary / name).replace(folder / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def atomic_directory(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder next to ``path``, renamed to ``path`` when the block ends without an error.

    Raises:
        FileExistsError: ``path`` exists and is not an empty folder.
        OutputError: the folder can't be written.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(f"{path}: exists already and is not an empty folder.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        with naming(path, _OF_THE_DISK):
            yield temporary
            temporary.chmod(0o777 & ~_umask())
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def naming(path: Path, numbers: Container[int | None] | None = None) -> Iterator[None]:
    """Turn errors of the operating system into one that names the file or folder that can't be written.

    Args:
        path: the file or folder.
        numbers: ``errno`` values of the errors to convert; None converts all.

    Raises:
        OutputError: in place of the error.
    """
    try:
        yield
    except OSError as error:
        # Of files in a temporary folder, the user knows the folder's final place.
        cause = error.__cause__ if isinstance(error, OutputError) else error
        if not isinstance(cause, OSError) or (numbers is not None and cause.errno not in numbers):
            raise
        raise OutputError(
            f"{path}: can't be written ({cause.strerror or cause}). Make room or choose another folder, and start "
            "again."
        ) from cause


def sha256_of_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's bytes as 64 lower-case hexadecimal digits."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def known_sha256_of_file(path: Path | str) -> str:
    """Return the SHA-256 of a file as :func:`sha256_of_file`, read once as long as its size and time stay."""
    status = Path(path).stat()
    return _sha256_at(Path(path), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _sha256_at(path: Path, size: int, modified_ns: int) -> str:
    return sha256_of_file(path)


def is_junk(name: str) -> bool:
    """Return whether a path with forward slashes is a file that an operating system left behind.

    Example:
        >>> is_junk("__MACOSX/stage1_train/._a.png"), is_junk("images/a.png")
        (True, False)
    """
    parts = name.lower().split("/")
    return "__macosx" in parts or parts[-1] in _JUNK_NAMES or parts[-1].startswith("._")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
