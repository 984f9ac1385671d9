"""What has arrived of a file so far, and what it is a part of."""

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from io import FileIO
from pathlib import Path

from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.files import atomic_path


@dataclass(frozen=True)
class Origin:
    """The version of a file that a server holds.

    Attributes:
        url: where the download started, before redirects.
        validator: strong ``ETag`` or ``Last-Modified`` for ``If-Range`` (RFC 9110, section 13.1.5); empty
            where the server states none, and then a download cannot go on later.
        total_bytes: size of the whole file; None where the server does not say.
    """

    url: str
    validator: str
    total_bytes: int | None


class PartialFile:
    """``<name>.part`` beside the final name, and its origin in ``<name>.part.json``.

    Both survive an interruption; :meth:`discard` removes them.
    """

    def __init__(self, target: Path) -> None:
        self.body = target.with_name(f"{target.name}.part")
        self._state = target.with_name(f"{target.name}.part.json")

    @property
    def size(self) -> int:
        """Bytes that have arrived."""
        return self.body.stat().st_size if self.body.is_file() else 0

    def origin(self) -> Origin | None:
        """Return what the bytes on disk are a part of; None if there are none or nothing is known of them."""
        if not self.size or not self._state.is_file():
            return None
        try:
            origin = Origin(**json.loads(self._state.read_text(encoding="utf-8")))
        except (ValueError, TypeError):  # a damaged note only costs a new start
            return None
        known_size = origin.total_bytes is None or isinstance(origin.total_bytes, int)
        return origin if isinstance(origin.validator, str) and known_size else None

    def restart(self, origin: Origin) -> None:
        """Empty the body and note whose bytes follow."""
        # In this order: bytes of one version never stand beside the note of another.
        self.body.parent.mkdir(parents=True, exist_ok=True)
        self.body.write_bytes(b"")
        with atomic_path(self._state) as state:
            state.write_text(json.dumps(asdict(origin)), encoding="utf-8")

    def append(self, blocks: Iterable[bytes], max_bytes: int) -> None:
        """Write ``blocks`` behind what is there.

        Raises:
            DatasetError: the file grows past ``max_bytes``, and is removed; or the disk is full or fails, and
                what has arrived stays.
        """
        written = self.size
        with self.body.open("ab", buffering=0) as file:
            for block in blocks:
                written += len(block)
                if written > max_bytes:
                    break
                self._write(file, block)
        if written > max_bytes:
            self.discard()
            raise DatasetError(
                f"{self.body}: more than the {max_bytes:,} bytes that the file may have; removed."
            )

    def discard(self) -> None:
        """Remove the body and its note."""
        self.body.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def become(self, target: Path) -> None:
        """Give the body its final name."""
        with self.body.open("rb") as written:
            os.fsync(written.fileno())
        self.body.replace(target)
        self._state.unlink(missing_ok=True)

    def _write(self, file: FileIO, block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise DatasetError(
                f"{self.body}: cannot be written ({error.strerror}). What has arrived stays there; run the same "
                "command again to go on."
            ) from error
