import numpy as np
import pytest
from PIL import Image

from nucsam_monai.data import balanced_weights, image_kind
from nucsam_monai.data.subset import first_of_each_domain
from nucsam_monai.utils.errors import ConfigurationError

ITEMS = [{"domain": domain, "id": str(number)} for number, domain in enumerate("abacba")]


@pytest.mark.parametrize(("count", "expected"), [(1, "013"), (2, "01234"), (9, "012345"), (None, "012345")])
def test_the_first_of_each_domain_in_their_order(count, expected):
    assert "".join(item["id"] for item in first_of_each_domain(ITEMS, count)) == expected


def test_no_image_is_refused():
    with pytest.raises(ConfigurationError, match="0 images of each domain: expected 1 or more"):
        first_of_each_domain(ITEMS, 0)


def ground(colour, side=96, nuclei=None, noise=6, seed=0):
    """Return an image of a colour with darker or brighter discs."""
    rng = np.random.default_rng(seed)
    image = np.broadcast_to(np.array(colour, dtype=float), (side, side, 3)).copy()
    y, x = np.mgrid[:side, :side]
    if nuclei is not None:
        image[(y % 32 - 16) ** 2 + (x % 32 - 16) ** 2 <= 80] = nuclei
    image += rng.integers(-noise, noise + 1, (side, side, 1))  # the same in all colours, as of a grey camera
    return image.clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("colour", "nuclei", "kind"),
    [
        ((0, 0, 0), (90, 90, 90), "dark"),
        ((10, 12, 60), (60, 80, 255), "dark"),
        ((90, 90, 90), (250, 250, 250), "dark"),
        ((240, 240, 240), (60, 60, 60), "grey"),
        ((150, 150, 150), (90, 90, 90), "grey"),
        ((245, 240, 242), (110, 60, 150), "white_ground"),
        ((225, 150, 190), (90, 50, 140), "stained_ground"),
        ((235, 200, 205), (90, 50, 140), "stained_ground"),
    ],
)
@pytest.mark.parametrize("side", [64, 96, 500])
def test_kinds_are_told_by_the_ground(colour, nuclei, kind, side):
    assert image_kind(ground(colour, side, nuclei)) == kind


def test_the_kind_does_not_depend_on_the_size_or_the_proportions():
    image = ground((225, 150, 190), 256, (90, 50, 140))
    assert image_kind(image) == image_kind(image[:100]) == image_kind(image[:, :64]) == "stained_ground"


def items_of(folder, *sizes):
    """Write images of (domain, colour, height, width)."""
    items = []
    for number, (domain, colour, height, width) in enumerate(sizes):
        path = folder / f"{number}.png"
        Image.fromarray(np.broadcast_to(np.array(colour, dtype=np.uint8), (height, width, 3))).save(path)
        items.append({"image": str(path), "domain": domain})
    return items


def test_within_a_domain_weights_are_the_crops_of_an_image_over_the_root_of_those_of_its_kind(tmp_path):
    dark, white = (0, 0, 0), (250, 250, 250)
    items = items_of(
        tmp_path,
        ("a", dark, 64, 64),
        ("a", dark, 128, 64),
        ("a", white, 64, 192),
        ("b", dark, 16, 20),
    )
    # kinds of 1 + 2 and 3 crops in one domain, of 1 in the other: an image smaller than a crop counts as one
    in_a = np.array([1 / 3**0.5, 2 / 3**0.5, 3 / 3**0.5])
    expected = np.append(in_a / in_a.sum(), 1.0) / 2
    found = balanced_weights(items, crop_px=64)
    np.testing.assert_allclose(found, expected)
    order = [2, 0, 3, 1]
    np.testing.assert_allclose(balanced_weights([items[i] for i in order], 64), found[order])


def test_domains_are_drawn_alike_and_kinds_by_the_root_of_their_crops(tmp_path):
    sizes = (
        [("a", (0, 0, 0), 64, 64)] * 16
        + [("a", (250, 250, 250), 64, 64)] * 4
        + [("b", (0, 0, 0), 64, 64)] * 4
    )
    found = balanced_weights(items_of(tmp_path, *sizes), crop_px=64)
    assert found.sum() == pytest.approx(1)
    assert found[:16].sum() / found[16:20].sum() == pytest.approx(2)
    assert found[20:].sum() == pytest.approx(0.5)
