"""Every domain's images: deterministic, of the format, and neither trivial nor impossible."""

from dataclasses import replace

import numpy as np
import pytest

from nucsam_monai.data.demo import DEMO_DOMAINS, DemoCounts, DemoSlot, demo_slots, draw_demo_image
from nucsam_monai.inferers import otsu_foreground
from nucsam_monai.utils.errors import ConfigurationError

DOMAINS = sorted(DEMO_DOMAINS)
TRAINED = [name for name in DOMAINS if not DEMO_DOMAINS[name].held_out]


@pytest.mark.parametrize("domain", DOMAINS)
def test_the_same_slot_and_seed_give_the_same_bytes(domain: str) -> None:
    slot = DemoSlot(domain, "test", 1, 8)
    first, second, other_seed = draw_demo_image(slot), draw_demo_image(slot), draw_demo_image(slot, seed=1)
    assert first.image.tobytes() == second.image.tobytes()
    assert first.instances.tobytes() == second.instances.tobytes()
    assert first.classes == second.classes
    assert first.image.tobytes() != other_seed.image.tobytes()
    assert first.instances.tobytes() != other_seed.instances.tobytes()


@pytest.mark.parametrize("domain", DOMAINS)
@pytest.mark.parametrize("index", [0, 4])
def test_an_image_is_of_the_format_and_otsu_is_a_fair_baseline(domain: str, index: int) -> None:
    slot = DemoSlot(domain, "test", index, 8)
    drawn = draw_demo_image(slot)
    assert drawn.image.dtype == np.uint8
    assert drawn.image.shape == (*slot.shape, 3)
    assert drawn.instances.dtype == np.int32
    assert drawn.instances.shape == slot.shape
    ids = np.unique(drawn.instances).tolist()
    assert ids == list(range(len(ids)))
    assert set(drawn.classes) == set(ids) - {0}
    assert set(drawn.classes.values()) <= {0, 1}
    assert len(ids) > 8
    truth, guess = drawn.instances > 0, otsu_foreground(drawn.image)
    dice = 2 * (truth & guess).sum() / (truth.sum() + guess.sum())
    assert 0.25 < dice < 0.92


@pytest.mark.parametrize("domain", DOMAINS)
def test_empty_images_have_no_nuclei_with_and_without_clutter(domain: str) -> None:
    for index, clutter in ((3, True), (15, False)):
        slot = DemoSlot(domain, "test", index, 0)
        assert slot.empty
        assert slot.clutter is clutter
        drawn = draw_demo_image(slot)
        assert not drawn.instances.any()
        assert drawn.classes == {}
        assert drawn.image.std() > 0


def test_about_one_image_in_twelve_is_empty() -> None:
    slots = [slot for slot in demo_slots("demo_he", DemoCounts()) if slot.split == "training"]
    assert sum(slot.empty for slot in slots) == 2


@pytest.mark.parametrize("domain", TRAINED)
def test_splits_share_no_slide_and_slides_hold_several_images(domain: str) -> None:
    slots = list(demo_slots(domain, DemoCounts()))
    groups = {
        split: {s.group for s in slots if s.split == split} for split in ("training", "validation", "test")
    }
    assert {split: len(names) for split, names in groups.items()} == {
        "training": 6,
        "validation": 2,
        "test": 2,
    }
    assert not groups["training"] & groups["validation"]
    assert not groups["training"] & groups["test"]
    assert not groups["validation"] & groups["test"]
    assert len({slot.id for slot in slots}) == len(slots) == 38
    assert any(slot.shape[0] != slot.shape[1] for slot in slots)


def test_four_domains_are_trained_on_and_one_is_held_out() -> None:
    assert len(TRAINED) == 4
    (held_out,) = set(DOMAINS) - set(TRAINED)
    assert {slot.split for slot in demo_slots(held_out, DemoCounts())} == {"test"}


def test_images_differ_between_splits_and_share_the_stain_of_their_slide() -> None:
    slot = DemoSlot("demo_ihc", "training", 1, 2)
    drawn = draw_demo_image(slot)
    assert not np.array_equal(drawn.instances, draw_demo_image(replace(slot, split="validation")).instances)

    def ground_colour(index: int, slide: int) -> np.ndarray:
        return np.median(draw_demo_image(DemoSlot("demo_ihc", "training", index, slide)).image, axis=(0, 1))

    same = np.abs(ground_colour(1, 2) - ground_colour(2, 2)).max()
    others = max(np.abs(ground_colour(1, 2) - ground_colour(1, slide)).max() for slide in (0, 1, 3))
    assert same < others


def test_domains_look_different() -> None:
    colours = {
        name: draw_demo_image(DemoSlot(name, "training", 0, 0)).image.reshape(-1, 3).mean(axis=0)
        for name in TRAINED
    }
    for name in TRAINED:
        for other in set(TRAINED) - {name}:
            assert np.abs(colours[name] - colours[other]).max() > 15, (name, other)


def test_an_unknown_domain_and_empty_counts_are_named() -> None:
    with pytest.raises(ConfigurationError, match=r"demo_moon.*demo_he"):
        next(demo_slots("demo_moon", DemoCounts()))
    with pytest.raises(ConfigurationError, match="test is 0"):
        DemoCounts(test=0)
