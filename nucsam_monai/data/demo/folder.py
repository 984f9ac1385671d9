"""Draw the demo data on first use, and check it by a stamp afterwards."""

import json
import logging
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from nucsam_monai.data.converters.progress import with_progress
from nucsam_monai.data.dataset import DATASET_FILE, DatasetMetadata
from nucsam_monai.data.demo.painter import (
    render_cryo,
    render_fluorescence,
    render_he,
    render_ihc,
    render_phase,
)
from nucsam_monai.data.demo.scene import CLASS_NAMES, Scene, SceneRecipe, draw_scene
from nucsam_monai.data.splits import SPLITS
from nucsam_monai.data.writer import DatasetWriter
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from nucsam_monai.utils.files import atomic_directory
from nucsam_monai.utils.paths import project_root

_IMAGES_PER_SLIDE = 4
_EMPTY_EVERY = 12
_TEST_SHAPES = ((256, 256), (256, 320), (256, 256), (320, 256), (251, 317))
DEMO_VERSION = 1
"""Raised whenever the same seed gives other pixels."""

STAMP_FILE = "demo.json"
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoDomain:
    """One kind of microscopy.

    Attributes:
        modality: modality in the description of the dataset.
        recipe: layout of its scenes.
        render: turns a scene into an RGB image.
        held_out: only a test split, for zero-shot evaluation.
    """

    modality: str
    recipe: SceneRecipe
    render: Callable[[Scene, np.random.Generator, np.random.Generator, bool], np.ndarray]
    held_out: bool = False


DEMO_DOMAINS: Mapping[str, DemoDomain] = MappingProxyType(
    {
        "demo_fluorescence": DemoDomain(
            "fluorescence",
            SceneRecipe((35, 110), (6.5, 11.5), 0.35, 0.6, 0.0, 0.55, 0.08),
            render_fluorescence,
        ),
        "demo_he": DemoDomain("H&E", SceneRecipe((60, 130), (6.0, 10.5), 0.75, 0.55, 0.025, 0.45), render_he),
        "demo_ihc": DemoDomain("IHC", SceneRecipe((50, 110), (6.0, 10.5), 0.6, 0.6, 0.04, 0.45), render_ihc),
        "demo_phase": DemoDomain(
            "phase contrast", SceneRecipe((14, 40), (9.0, 14.0), 0.5, 0.75, 0.0, 0.3, 0.07), render_phase
        ),
        "demo_cryo_zeroshot": DemoDomain(
            "H&E, frozen section",
            SceneRecipe((45, 100), (7.0, 12.0), 0.6, 0.65, 0.03, 0.5, 0.13),
            render_cryo,
            held_out=True,
        ),
    }
)


@dataclass(frozen=True)
class DemoCounts:
    """Images per domain and split; held-out domains have only ``held_out_test``."""

    training: int = 24
    validation: int = 6
    test: int = 8
    held_out_test: int = 12

    def __post_init__(self) -> None:
        for name in (*SPLITS, "held_out_test"):
            if getattr(self, name) < 1:
                raise ConfigurationError(f"demo counts: {name} is {getattr(self, name)}, expected 1 or more.")

    def of(self, domain: str) -> dict[str, int]:
        """Return the number of images per split of a domain."""
        if DEMO_DOMAINS[domain].held_out:
            return {"training": 0, "validation": 0, "test": self.held_out_test}
        return {"training": self.training, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class DemoSlot:
    """The place of one image in the demo data.

    Attributes:
        domain: a key of :data:`DEMO_DOMAINS`.
        split: one of :data:`~nucsam_monai.data.splits.SPLITS`.
        index: number within the split.
        slide: number of the synthetic slide within the domain; a slide lies in one split only.
    """

    domain: str
    split: str
    index: int
    slide: int

    @property
    def id(self) -> str:
        """Name of the image, unique over all domains."""
        return f"{self.domain}_{self.split}_{self.index:03d}"

    @property
    def group(self) -> str:
        """Name of the slide, unique over all domains."""
        return f"{self.domain}_slide{self.slide:02d}"

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels; some test images are not square."""
        return _TEST_SHAPES[self.index % len(_TEST_SHAPES)] if self.split == "test" else (256, 256)

    @property
    def empty(self) -> bool:
        """Whether the image has no nuclei."""
        return self.index % _EMPTY_EVERY == 3

    @property
    def clutter(self) -> bool:
        """Whether the image has things that look like nuclei; every second empty image has."""
        return self.index % 3 != 1 if not self.empty else self.index % (2 * _EMPTY_EVERY) == 3


@dataclass(frozen=True)
class DemoImage:
    """One drawn image.

    Attributes:
        image: ``(H, W, 3)`` uint8 RGB.
        instances: ``(H, W)`` int32, 0 = background, ids 1..n contiguous.
        classes: instance id to index into ``CLASS_NAMES``.
    """

    image: np.ndarray
    instances: np.ndarray
    classes: dict[int, int]


def demo_slots(domain: str, counts: DemoCounts) -> Iterator[DemoSlot]:
    """Yield the places of a domain's images, split after split.

    Raises:
        ConfigurationError: unknown domain.
    """
    if domain not in DEMO_DOMAINS:
        raise ConfigurationError(f"demo domain '{domain}': expected one of {', '.join(DEMO_DOMAINS)}.")
    first_slide = 0
    for split, count in counts.of(domain).items():
        for index in range(count):
            yield DemoSlot(domain, split, index, first_slide + index // _IMAGES_PER_SLIDE)
        first_slide += -(-count // _IMAGES_PER_SLIDE)


def draw_demo_image(slot: DemoSlot, seed: int = 0) -> DemoImage:
    """Draw one image; the same slot and seed always give the same bytes.

    Geometry, appearance and slide have random streams of their own, derived from the seed and the names,
    so that an image depends on no other image and can be drawn alone.

    Example:
        >>> slot = next(demo_slots("demo_he", DemoCounts(training=1)))
        >>> draw_demo_image(slot).image.shape
        (256, 256, 3)
    """
    domain = DEMO_DOMAINS[slot.domain]
    geometry = _stream(seed, slot.domain, slot.split, str(slot.index), "geometry")
    appearance = _stream(seed, slot.domain, slot.split, str(slot.index), "appearance")
    slide = _stream(seed, slot.group)
    scale = float(slide.uniform(0.85, 1.25))
    recipe = domain.recipe
    if slot.empty:
        recipe = replace(recipe, nuclei=(0, 0), epithelium_share=0.0)
    scene = draw_scene(geometry, slot.shape, recipe, scale)
    image = domain.render(scene, slide, appearance, slot.clutter)
    classes = {number: nucleus.class_id for number, nucleus in enumerate(scene.nuclei, start=1)}
    return DemoImage(image, scene.instances, classes)


def _stream(seed: int, *names: str) -> np.random.Generator:
    return np.random.default_rng(
        np.random.SeedSequence([seed, *(zlib.crc32(name.encode()) for name in names)])
    )


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
            "Remove the folder to draw it again, or name another one."
        )
    missing = [name for name in DEMO_DOMAINS if not (folder / name / DATASET_FILE).is_file()]
    if missing:
        raise DatasetError(
            f"{folder}: the demo data is incomplete, without {', '.join(missing)}. "
            "Remove the folder to draw it again."
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
