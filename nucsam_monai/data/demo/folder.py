"""The demo data on disk: drawn on first use, checked by a stamp ever after."""

import json
import logging
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.dataset import DATASET_FILE, DatasetMetadata
from nucsam_monai.data.demo.geometry import CLASS_NAMES
from nucsam_monai.data.demo.plan import DEMO_DOMAINS, DemoCounts, demo_slots, draw_demo_image
from nucsam_monai.data.writer import DatasetWriter
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import atomic_directory
from nucsam_monai.utils.paths import project_root

DEMO_VERSION = 1
"""Raised whenever the same seed gives other pixels."""

STAMP_FILE = "demo.json"

_logger = logging.getLogger(__name__)


def demo_dataset_dir(root: Path | str | None = None, seed: int = 0, counts: DemoCounts | None = None) -> str:
    """Return a folder of synthetic microscopy, one dataset folder per domain; draw it if it is not there.

    The first call takes some seconds; later calls only read a stamp. Nothing is downloaded. The folder
    appears whole or not at all, and two processes may call this at once.

    Args:
        root: the folder; ``data/demo`` of the project by default.
        seed: seed of all images; the same seed gives the same bytes.
        counts: images per split; the standard few dozen per domain by default.

    Returns:
        The absolute path as a string, because configurations join strings.

    Raises:
        ConfigurationError: ``seed`` is negative.
        DatasetError: ``root`` holds something else: other files, another seed, another version of the demo.

    Example:
        >>> demo_dataset_dir("/data/demo")  # doctest: +SKIP
        '/data/demo'
    """
    if seed < 0:
        raise ConfigurationError(f"seed {seed}: expected an integer of 0 or more.")
    folder = Path(root).absolute() if root is not None else project_root() / "data" / "demo"
    counts = counts or DemoCounts()
    stamp = _stamp(seed, counts)
    if not _is_there(folder, stamp):
        _logger.info("%s: drawing the demo data (once)", folder)
        try:
            with atomic_directory(folder) as temporary:
                _write(temporary, seed, counts)
                text = json.dumps(stamp, indent=1) + "\n"
                (temporary / STAMP_FILE).write_text(text, encoding="utf-8")
        except OSError:
            # Another process may have finished the same folder in the meantime; then it is as good as ours.
            if not _is_there(folder, stamp):
                raise
    return str(folder)


def _stamp(seed: int, counts: DemoCounts) -> dict[str, Any]:
    return {
        "generator": "nucsam_monai.data.demo",
        "version": DEMO_VERSION,
        "seed": seed,
        "counts": asdict(counts),
    }


def _is_there(folder: Path, stamp: dict[str, Any]) -> bool:
    """Return whether ``folder`` holds what ``stamp`` describes; False where it is absent or empty.

    Raises:
        DatasetError: it holds something else, which is never deleted here because it may be the user's.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    try:
        found = json.loads((folder / STAMP_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DatasetError(
            f"{folder}: exists, but holds no readable {STAMP_FILE}, so it is not a demo dataset. "
            "Name another folder, or remove this one."
        ) from error
    if found != stamp:
        raise DatasetError(
            f"{folder}: holds demo data of another kind: {STAMP_FILE} says {found}, expected {stamp}. "
            "Remove the folder to draw it anew, or name another one."
        )
    missing = [name for name in DEMO_DOMAINS if not (folder / name / DATASET_FILE).is_file()]
    if missing:
        raise DatasetError(
            f"{folder}: the demo data is incomplete, without {', '.join(missing)}. "
            "Remove the folder to draw it anew."
        )
    return True


def _write(folder: Path, seed: int, counts: DemoCounts) -> None:
    for name, domain in DEMO_DOMAINS.items():
        metadata = DatasetMetadata(
            name=name,
            domain=name,
            modality=domain.modality,
            magnification=20.0,
            mpp=0.5,
            licence="CC0-1.0",
            citation="Synthetic images drawn by nucsam_monai.data.demo; no publication.",
            class_names=CLASS_NAMES,
            conversion={"generator_version": DEMO_VERSION, "seed": seed},
        )
        with DatasetWriter(folder / name, metadata) as writer:
            for slot in with_progress(list(demo_slots(name, counts)), title=f"drawing {name}", unit="image"):
                drawn = draw_demo_image(slot, seed)
                writer.add(
                    slot.split, slot.id, drawn.image, drawn.instances, classes=drawn.classes, group=slot.group
                )
