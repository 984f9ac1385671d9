"""Which images there are, and the one function that draws any of them."""

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np

from nucsam_monai.data.demo.brightfield import render_cryo, render_he, render_ihc
from nucsam_monai.data.demo.fluorescence import render_fluorescence
from nucsam_monai.data.demo.geometry import Scene, SceneRecipe, draw_scene
from nucsam_monai.data.demo.phase import render_phase
from nucsam_monai.utils.errors import ConfigurationError

SPLITS = ("training", "validation", "test")
_IMAGES_PER_SLIDE = 4
_EMPTY_EVERY = 12
_TEST_SHAPES = ((256, 256), (256, 320), (256, 256), (320, 256), (251, 317))


@dataclass(frozen=True)
class DemoDomain:
    """One kind of microscopy.

    Attributes:
        modality: what the dataset's description calls it.
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
        for name in ("training", "validation", "test", "held_out_test"):
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
        split: one of :data:`SPLITS`.
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
