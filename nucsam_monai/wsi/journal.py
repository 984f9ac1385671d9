"""Keep the plan and the finished shards of a slide in files, so that a killed run can be resumed without repair."""

import fcntl
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from nucsam_monai.io import write_json, write_png
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.files import atomic_path, sha256_of_file

_KEY = b"nucsam"


class Journal:
    """Read and write the folder of one slide.

    A shard is finished if its Parquet file exists and names this plan; there is no other record.

    Args:
        folder: ``<output_dir>/<slide>``; created when the plan is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.plan_file = folder / "plan.json"
        self.done_file = folder / "DONE.json"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder against other runs on this machine, and remove unfinished files of a killed run.

        Raises:
            ConfigurationError: another run uses the folder.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise ConfigurationError(
                    f"{self.folder}: another run works in it. Wait for it to end."
                ) from error
            for part in (self.folder, self.folder / "shards", self.folder / "failed"):
                for left in part.glob(".*-*"):
                    shutil.rmtree(left) if left.is_dir() else left.unlink()
            yield

    @property
    def plan(self) -> dict[str, Any] | None:
        """The plan in the folder; None if there is none."""
        if not self.plan_file.is_file():
            return None
        return dict(json.loads(self.plan_file.read_text(encoding="utf-8")))

    def check(self, request: Mapping[str, Any]) -> None:
        """Check that the plan in the folder was made for the same request.

        Raises:
            ConfigurationError: it was not; the message names the keys that differ.
        """
        plan = self.plan
        if plan is None:
            return
        asked = json.loads(json.dumps(request))
        different = [key for key in asked if plan["request"].get(key) != asked[key]]
        if different:
            raise ConfigurationError(
                f"{self.folder}: holds a run with other values of {', '.join(different)}. "
                "Choose another folder, or pass overwrite to start again."
            )

    def clear(self) -> None:
        """Remove everything that an earlier run wrote."""
        for path in self.folder.iterdir():
            if path.name != ".lock":
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def write_plan(
        self, plan: Mapping[str, Any], mask: np.ndarray, cells: np.ndarray, thumbnail: np.ndarray
    ) -> None:
        """Write the masks and the small image, and last the plan that names their digests."""
        write_png(self.folder / "tissue.png", np.stack([mask] * 3, axis=-1) * np.uint8(255))
        write_png(self.folder / "cells.png", np.stack([cells] * 3, axis=-1) * np.uint8(255))
        write_png(self.folder / "thumbnail.png", thumbnail)
        digests = {name: sha256_of_file(self.folder / f"{name}.png") for name in ("tissue", "cells")}
        write_json(self.plan_file, {**plan, "sha256": digests})

    def cells(self) -> np.ndarray:
        """Return the active cells of the lattice, ``(rows, columns)`` bool."""
        return np.asarray(Image.open(self.folder / "cells.png").convert("L")) > 0

    def thumbnail(self) -> np.ndarray:
        """Return the slide's small image, ``(h, w, 3)`` uint8."""
        return np.asarray(Image.open(self.folder / "thumbnail.png"))

    @property
    def digest(self) -> str:
        """SHA-256 of the plan's file."""
        return sha256_of_file(self.plan_file)

    def shard_file(self, index: int) -> Path:
        """Return the path of the nuclei of a shard."""
        return self.folder / "shards" / f"{index:05d}.parquet"

    def is_done(self, index: int, digest: str) -> bool:
        """Return whether a shard was written for this plan."""
        file = self.shard_file(index)
        return file.is_file() and self.facts(index).get("plan") == digest

    def facts(self, index: int) -> dict[str, Any]:
        """Read a shard's footer: the plan's digest, unreadable blocks and seconds per stage."""
        metadata = pq.read_metadata(self.shard_file(index)).metadata or {}
        return dict(json.loads(metadata.get(_KEY, b"{}")))

    def write_shard(self, index: int, table: pa.Table, facts: Mapping[str, Any]) -> None:
        """Write the nuclei of a shard, which marks it as finished."""
        table = table.replace_schema_metadata({_KEY: json.dumps(facts).encode()})
        with atomic_path(self.shard_file(index)) as temporary:
            pq.write_table(table, temporary, compression="zstd", compression_level=1)
        self.failed_file(index).unlink(missing_ok=True)

    def failed_file(self, index: int) -> Path:
        """Return the path of the error message of a shard."""
        return self.folder / "failed" / f"{index:05d}.json"

    def write_failure(self, index: int, error: BaseException) -> None:
        """Write the error message of a shard that could not be segmented."""
        write_json(self.failed_file(index), {"error": type(error).__name__, "message": str(error)})

    def finish(self, names: list[str]) -> None:
        """Write ``DONE.json`` with size and digest of every output."""
        files = {name: self.folder / name for name in names}
        facts = {n: {"bytes": f.stat().st_size, "sha256": sha256_of_file(f)} for n, f in files.items()}
        write_json(self.done_file, {"plan": self.digest, "files": facts})

    def is_finished(self) -> bool:
        """Return whether all outputs of this plan exist."""
        if not self.done_file.is_file() or not self.plan_file.is_file():
            return False
        done = json.loads(self.done_file.read_text(encoding="utf-8"))
        there = all((self.folder / name).is_file() for name in done["files"])
        return bool(there and done["plan"] == self.digest)


def digest_of(document: Any) -> str:
    """Return the SHA-256 of a document's canonical JSON."""
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()
