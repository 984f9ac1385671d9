"""Track in an inference's output folder which images are finished and which failed."""

import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from ignite.engine import Engine, Events

from nucsam_monai.engines.configuration import changed_settings, current_parser, deciding_settings
from nucsam_monai.utils.errors import ConfigurationError, FailedImagesError, OutputError
from nucsam_monai.utils.files import atomic_path, naming

logger = logging.getLogger(__name__)

JOURNAL_NAME = ".inference.jsonl"
SUMMARY_NAME = "inference_summary.json"

_NOT_COMPARED = (
    "bundle_root",
    "dataset_dir",
    "input",
    "output_dir",
    "overwrite",
    "max_pixels",
    "strips_above_mpx",
    "device",
    "compile",
)
_NAMED = 3


class ResultsFolder:
    """Record finished images, so that an interrupted inference resumes.

    An image is finished if it is in the journal of the folder, its results are there, and it has not changed since.
    The journal also records settings and weights, so that results of different ones are never mixed.

    Args:
        folder: folder with the results.
        items: the images, with ``image`` (path) and ``id``.
        overwrite: segment all images, whatever is there.

    Example:
        In a bundle, together with ``"results": "@results"`` of the images and of the writer::

            "results": "$nucsam_monai.engines.ResultsFolder(@output_dir, @dataset#data, @overwrite)",
            "handlers": ["$nucsam_monai.handlers.InferenceHandlers(@results, @overlay_px)"],
            "run": ["$@evaluator.run()", "$@results.finish()"]
    """

    def __init__(
        self, folder: str | Path, items: Sequence[Mapping[str, Any]], overwrite: bool = False
    ) -> None:
        self.folder = Path(folder)
        self.items = list(items)
        self.overwrite = overwrite
        self.left = self.items
        self._kept: list[dict[str, Any]] = []
        # Not the parser itself: MONAI's loader seeds whatever it finds among the attributes of a dataset.
        parser = current_parser()
        self._settings: Callable[[], dict[str, str]] = (
            partial(deciding_settings, parser, _NOT_COMPARED) if parser else dict
        )

    def attach(self, engine: Engine) -> None:
        """Attach to the evaluator, which starts with the images that are left."""
        engine.add_event_handler(Events.STARTED, self.start)

    def start(self, _engine: Engine | None = None) -> None:
        """Determine which images are left, and check that results can be written.

        Raises:
            ConfigurationError: the folder holds results of other settings or weights.
            OutputError: the folder can't be written to, or is full.
        """
        self._probe()
        settings = self._settings()
        self._settings = dict  # worker processes get a copy of this object
        old, entries = self._read()
        done = [] if self.overwrite else [item for item in self.items if self._is_done(item, entries)]
        if done and (changed := changed_settings(old, settings)):
            named = ", ".join(f"{key} (was {a}, is {b})" for key, (a, b) in list(changed.items())[:_NAMED])
            raise ConfigurationError(
                f"output_dir {self.folder}: holds results of these images with another {named}. Choose another folder, "
                "or pass --overwrite True."
            )
        finished = {item["id"] for item in done}
        self.left = [item for item in self.items if item["id"] not in finished]
        again = {item["id"] for item in self.left}
        kept = [
            entry
            for name, entry in entries.items()
            if name in finished or (old == settings and name not in again)
        ]
        self._kept = [{"settings": settings, "run": uuid4().hex}, *kept]
        if done:
            logger.info(
                "%d of %d images are finished and skipped; --overwrite True segments them again.",
                len(done),
                len(self.items),
            )

    def add(self, name: str, nuclei: int, files: Sequence[Path]) -> None:
        """Record that the results of an image are written."""
        self._note(name, {"nuclei": nuclei, "files": [file.name for file in files]})

    def fail(self, name: str, reason: str) -> None:
        """Record that an image could not be segmented."""
        self._note(name, {"error": reason})

    def finish(self) -> None:
        """Write ``inference_summary.json``.

        Raises:
            FailedImagesError: an image failed.
        """
        _, entries = self._read()
        failed = {
            str(item["image"]): entries[item["id"]]["error"]
            for item in self.items
            if "error" in entries.get(item["id"], {})
        }
        summary = self.folder / SUMMARY_NAME
        counts = {
            "images": len(self.items),
            "segmented": len(self.left) - len(failed),
            "finished_before": len(self.items) - len(self.left),
        }
        with atomic_path(summary) as file:
            file.write_text(
                json.dumps({**counts, "failed": failed}, indent=1, ensure_ascii=False) + "\n", "utf-8"
            )
        if failed:
            raise FailedImagesError(
                f"{len(failed)} of {len(self.items)} images could not be segmented; all are in {summary} with the "
                f"reason, and starting again retries only these. The first: {next(iter(failed.values()))}"
            )

    def _probe(self) -> None:
        """Write and remove a test file, with the folder if it is new: an image may still stop the inference."""
        is_new = not self.folder.exists()
        with naming(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as probe:
                probe.write(b"0" * 4096)
        self._check_space()
        if is_new:
            self.folder.rmdir()

    def _check_space(self) -> None:
        """Refuse a disk without room for the results of the largest image, which are about as large as the image."""
        paths = [Path(item["image"]) for item in self.items]
        sizes = [path.stat().st_size for path in paths if path.is_file()]
        free = shutil.disk_usage(self.folder).free
        if free < max(sizes, default=0):
            raise OutputError(
                f"output_dir {self.folder}: {free / 1e6:.1f} MB are free, and an image to segment has "
                f"{max(sizes) / 1e6:.1f} MB. Make room or choose another folder."
            )

    def _is_done(self, item: Mapping[str, Any], entries: Mapping[str, Any]) -> bool:
        entry = entries.get(item["id"], {})
        files = entry.get("files", [])
        same = all(entry.get(key) == value for key, value in _facts(item).items())
        return bool(files) and same and all((self.folder / name).is_file() for name in files)

    def _note(self, name: str, facts: Mapping[str, Any]) -> None:
        item = next(one for one in self.items if one["id"] == name)
        path = self.folder / JOURNAL_NAME
        # A worker process of a loader, which has a copy of this object, may have begun the journal.
        if self._kept and not (path.is_file() and self._kept[0]["run"] in path.read_text(encoding="utf-8")):
            with atomic_path(path) as temporary:
                temporary.write_text(
                    "".join(f"{json.dumps(line)}\n" for line in self._kept), encoding="utf-8"
                )
        self._kept = []
        with naming(path), path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({**_facts(item), **facts}) + "\n")

    def _read(self) -> tuple[dict[str, str], dict[str, Any]]:
        """Return the settings and the last entry of every image; a line that a crash cut off is left out."""
        path = self.folder / JOURNAL_NAME
        settings: dict[str, str] = {}
        entries: dict[str, Any] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            try:
                entry = dict(json.loads(line))
            except ValueError:
                continue
            settings = entry.get("settings", settings)
            if "id" in entry:
                entries[entry["id"]] = entry
        return settings, entries


def _facts(item: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts by which an unchanged image is recognised."""
    path = Path(item["image"]).absolute()
    state = path.stat() if path.is_file() else None
    return {
        "id": item["id"],
        "image": str(path),
        "bytes": state and state.st_size,
        "modified_ns": state and state.st_mtime_ns,
    }
