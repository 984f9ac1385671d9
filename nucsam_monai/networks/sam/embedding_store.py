"""Where cached embeddings lie: in files that processes share, and in the memory of one process."""

import json
import logging
import os
import re
import tempfile
import time
import zlib
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import safetensors
import safetensors.torch
from torch import Tensor

from nucsam_monai.networks.sam.tensor_files import bytes_of_tensor
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.files import atomic_path

logger = logging.getLogger(__name__)

_OURS = re.compile(r"(\.)?[0-9a-f]{64}(-.+)?\.safetensors")
_ABANDONED_AFTER_S = 3600.0
_KEPT_SHARE = 0.9  # of the limit, when files are removed: not every new file shall need a look at all of them
_LOOK_AGAIN_SHARE = 1 / 32  # of the limit: other processes write too


class Entry(NamedTuple):
    """What is cached of one image.

    Attributes:
        tensors: contiguous tensors on the CPU, by name.
        header: what describes them; the stores only carry it.
    """

    tensors: dict[str, Tensor]
    header: dict[str, str]

    @property
    def bytes(self) -> int:
        """Size of the tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


class MemoryStore:
    """The entries used last, as many as fit; a copy, also in another process, starts empty.

    Args:
        max_bytes: the limit; 0 keeps nothing.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[Any, ...]:
        return (MemoryStore, (self.max_bytes,))

    def get(self, key: str) -> Entry | None:
        """Return the entry, which becomes the one used last, or None."""
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def put(self, key: str, entry: Entry) -> None:
        """Keep an entry and drop those that were not used for longest."""
        if entry.bytes > self.max_bytes:
            return
        replaced = self._entries.pop(key, None)
        self._bytes += entry.bytes - (replaced.bytes if replaced else 0)
        self._entries[key] = entry
        while self._bytes > self.max_bytes:
            _, dropped = self._entries.popitem(last=False)
            self._bytes -= dropped.bytes


class FileStore:
    """One safetensors file per entry, in subfolders named by the first two digits of the key.

    Any number of processes may read and write the same folder: files appear complete or not at all, and of
    two writers of one key the last wins. A damaged file counts as missing and is removed. When the folder
    has reached its limit, the files not read for longest are removed; with several writers it may pass the
    limit by one part in 32 for each. A write that fails later, such as on a full disk, is logged once and
    ends writing, not the training.

    Args:
        folder: made where it does not exist. Files in it that are not of this store are left alone.
        max_bytes: limit of all files together.

    Raises:
        ConfigurationError: the folder cannot be made or written.
    """

    def __init__(self, folder: Path | str, max_bytes: int) -> None:
        self.folder = Path(folder)
        self.max_bytes = max_bytes
        self._writable = True
        self._total: int | None = None  # bytes in the folder; None asks for a look
        self._written = 0  # bytes written here since the last look
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=self.folder).close()
        except OSError as error:
            raise ConfigurationError(
                f"{self.folder}: the embedding cache cannot be written there ({error.strerror or error}). Give "
                "a folder that you may write, or null to work without a cache."
            ) from error

    def get(self, key: str) -> Entry | None:
        """Return the entry, which becomes the one used last, or None."""
        path = self._path(key)
        try:
            os.utime(path)
            return _read(path, key)
        except FileNotFoundError:
            return None
        except CheckpointError as error:
            if path.exists():  # else another process has just removed it
                logger.warning("%s Removed from the embedding cache; it is computed again.", error)
                self._remove(path)
        except OSError as error:
            logger.warning("%s: cannot be read (%s); it is computed again.", path, error)
        return None

    def put(self, key: str, entry: Entry) -> None:
        """Write an entry and make room for it first."""
        if not self._writable or entry.bytes > self.max_bytes:
            return
        header = {**entry.header, "key": key}
        header["crc32"] = _checksum(Entry(entry.tensors, header))
        try:
            self._make_room(entry.bytes)
            with atomic_path(self._path(key)) as temporary:
                safetensors.torch.save_file(entry.tensors, temporary, metadata=header)
        except (OSError, safetensors.SafetensorError) as error:
            self._writable = False
            logger.warning("%s: writing to the embedding cache ends here (%s).", self.folder, error)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.safetensors"

    def _make_room(self, size: int) -> None:
        """Remove files until ``size`` more bytes fit."""
        full = self._total is None or self._total + size > self.max_bytes
        if full or self._written > self.max_bytes * _LOOK_AGAIN_SHARE:
            files = sorted(self._look())
            self._total, self._written = sum(length for _, length, _ in files), 0
            if self._total + size > self.max_bytes:
                for _, length, path in files:
                    if self._total + size <= self.max_bytes * _KEPT_SHARE:
                        break
                    self._remove(path)
                    self._total -= length
        self._total = (self._total or 0) + size
        self._written += size

    def _look(self) -> Iterator[tuple[int, int, Path]]:
        """Yield when each file was used last (ns), its bytes and its path; tidy up after killed writers."""
        for path in self.folder.glob("[0-9a-f][0-9a-f]/*"):
            if not (match := _OURS.fullmatch(path.name)):
                continue
            with suppress(FileNotFoundError):
                status = path.stat()
                if not match[1]:
                    yield status.st_mtime_ns, status.st_size, path
                elif time.time() - status.st_mtime > _ABANDONED_AFTER_S:
                    self._remove(path)

    @staticmethod
    def _remove(path: Path) -> None:
        # A process that is reading the file keeps it until it is done, by the rules of POSIX; Windows refuses.
        with suppress(PermissionError):
            path.unlink(missing_ok=True)


def _read(path: Path, key: str) -> Entry:
    """Read and check one file; a file that is not what was written raises CheckpointError."""
    # Read at once: safetensors opens a file twice, and another process may replace it in between.
    data = path.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
        header = dict(json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {}))
    except (safetensors.SafetensorError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged safetensors file ({error}).") from error
    checksum = header.pop("crc32", None)
    entry = Entry(tensors, header)
    if header.get("key") != key or checksum != _checksum(entry):
        raise CheckpointError(f"{path}: damaged, its content is not what was written.")
    return entry


def _checksum(entry: Entry) -> str:
    value = zlib.crc32(repr(sorted(entry.header.items())).encode())
    for name in sorted(entry.tensors):
        value = zlib.crc32(bytes_of_tensor(entry.tensors[name]), zlib.crc32(name.encode(), value))
    return f"{value:08x}"
