"""Regions and large images: nuclei at the seams are neither cut nor doubled, and do not depend on the rectangle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nucsam_monai.utils.image_source import Region
from nucsam_monai.utils.nucleus import Nucleus, paint_nuclei
from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction, prediction_from_instances
from nucsam_monai.wsi import Method
from nucsam_monai.wsi.readers import ImageReader, open_slide
from nucsam_monai.wsi.regions import nuclei_of_image, nuclei_of_region
from tests.apps.monailabel.analytic import dark_nuclei, discs
from tests.wsi.slides import Oracle, TiledOracle, oracle, picture_of, random_nuclei, without_lines, write_tiff

CUT: Any = {"shard_px": 96, "largest_px": 24}


def same_up_to_ids(one: np.ndarray, other: np.ndarray) -> bool:
    pairs = np.unique(np.stack([one.ravel(), other.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def reader_of(pixels: np.ndarray) -> ImageReader:
    return ImageReader(Path("image"), pixels)


@pytest.mark.parametrize(
    "region", [Region(0, 0, 300, 260), Region(40, 30, 220, 200), Region(290, 250, 10, 10)]
)
def test_a_region_has_the_nuclei_whose_centre_it_holds(region: Region) -> None:
    truth = random_nuclei(300, 150, seed=2)[:260]
    nuclei = list(nuclei_of_region(reader_of(picture_of(truth)), 0, region, oracle(), **CUT))
    x, y, width, height = region
    wanted = np.zeros((height, width), dtype=np.int32)
    for number in np.unique(truth[truth > 0]):
        rows, columns = np.nonzero(truth == number)
        if x < columns.mean() + 0.5 < x + width and y < rows.mean() + 0.5 < y + height:
            wanted[truth[y : y + height, x : x + width] == number] = number
    assert len(nuclei) == len(np.unique(wanted)) - 1
    assert same_up_to_ids(paint_nuclei(nuclei, (height, width)), wanted)


class Dark(Oracle):
    """Finds what is dark, of one class and score; notes the largest region that it sees."""

    largest = 0

    def infer(self, pixels: np.ndarray) -> Any:
        Dark.largest = max(Dark.largest, pixels.shape[0], pixels.shape[1])
        return dark_nuclei(pixels)

    def nuclei(self, maps: Any) -> NucleiPrediction:
        table = maps.table.copy()
        table["class_id"], table["score"] = 1, 0.25
        return NucleiPrediction(maps.instances, table, None, ("a", "b"))


def dark() -> Method:
    return oracle(lambda statistics: Dark())


def test_classes_and_scores_are_kept_and_no_more_than_a_shard_is_read() -> None:
    image = discs(500, 400, [(50, 50), (99, 180)], 8)
    nuclei = list(nuclei_of_region(reader_of(image), 0, Region(10, 20, 380, 450), dark(), **CUT))
    assert [(one.class_id, one.score) for one in nuclei] == [(1, 0.25)] * 2
    assert same_up_to_ids(paint_nuclei(nuclei, (450, 380)) > 0, image[20:470, 10:390, 0] < 100)
    assert Dark.largest < 250


def test_a_region_without_nuclei() -> None:
    source = reader_of(discs(130, 90, [], 1))
    assert not list(nuclei_of_region(source, 0, Region(0, 0, 90, 130), dark(), **CUT))


@pytest.mark.parametrize("level", [0, 1])
def test_slides_are_read_at_the_resolution_of_the_network_and_answered_in_pixels_of_the_level(
    level: int, tmp_path: Path
) -> None:
    """The slide has 0.125 um/px, so that its nuclei are seen at half their size."""
    slide = open_slide(write_tiff(tmp_path / "a.tif", discs(800, 800, [(300, 500), (620, 210)], 40), 0.125))
    step = 4**level
    region = Region(100 // step, 80 // step, 600 // step, 640 // step)
    nuclei = list(nuclei_of_region(slide, level, region, dark(), shard_px=200, largest_px=60))
    centres = {(round((np.mean([n.box[0], n.box[2]]) + region.x) * step, -1), n.area_px > 60) for n in nuclei}
    assert centres == {(300, True), (620, True)}
    assert sum(one.area_px for one in nuclei) == pytest.approx(2 * np.pi * (40 / step) ** 2, rel=0.15)


@pytest.mark.parametrize(("width", "height", "expected"), [(9, 9, 9), (4, 9, 6), (3, 3, 2), (0, 5, 0)])
def test_cut_off(width: int, height: int, expected: int) -> None:
    nucleus = Nucleus(2, 1, np.ones((3, 3), dtype=bool))
    assert nucleus.cut_off(width, height).area_px == expected
    assert nucleus.moved(-3, -2).cut_off(9, 9).box == (0, 0, 2, 2)


PART_PX = 450 * 450
"""Of a part that is nine tiles wide: one cell, and room for the largest nucleus on both sides."""


def unscaled(statistics: Any) -> float:
    return 1.0


def check_same(found: NucleiPrediction, expected: np.ndarray) -> None:
    """Check that the nuclei are those of a label map, and that they are measured as one is."""
    assert same_up_to_ids(found.instances, expected)
    assert found.table["id"].tolist() == list(range(1, len(found) + 1))
    measured = prediction_from_instances(found.instances).table
    for field in set(NUCLEUS_DTYPE.names or ()) - {"score", "class_id"}:
        np.testing.assert_allclose(found.table[field], measured[field], rtol=1e-12)


@pytest.mark.parametrize(("height", "width"), [(310, 260), (20, 400)])
def test_a_large_image_has_the_nuclei_of_the_whole(height: int, width: int) -> None:
    """Where tiles begin can be seen in what is found, and the image's sides are no multiples of them."""
    truth = random_nuclei(400, 160, seed=4)[:height, :width]
    method = oracle(lambda statistics: TiledOracle())
    check_same(nuclei_of_image(picture_of(truth), method, unscaled, PART_PX), without_lines(truth))


class Bounded(Oracle):
    """Notes the largest part that it sees."""

    largest = 0

    def infer(self, pixels: np.ndarray) -> Any:
        Bounded.largest = max(Bounded.largest, pixels.shape[0] * pixels.shape[1])
        return super().infer(pixels)


def test_no_part_is_larger_than_allowed() -> None:
    truth = random_nuclei(700, 40, seed=5)
    nuclei_of_image(picture_of(truth), oracle(lambda statistics: Bounded()), unscaled, 600 * 600)
    assert 300 * 300 < Bounded.largest <= 600 * 600


def test_classes_scores_and_an_image_that_is_resized() -> None:
    image = discs(300, 260, [(50, 60), (201, 180)], 16)
    found = nuclei_of_image(image, oracle(lambda statistics: Dark()), lambda statistics: 0.5, PART_PX)
    assert found.instances.shape == (300, 260)
    assert found.class_names == ("a", "b")
    assert found.table[["class_id", "score"]].tolist() == [(1, 0.25)] * 2
    np.testing.assert_allclose(found.table["centroid_x_px"], [50, 201], atol=1)
    np.testing.assert_allclose(found.table["area_px"], np.pi * 16**2, rtol=0.1)
    check_same(found, found.instances)


def test_an_image_without_nuclei() -> None:
    found = nuclei_of_image(discs(90, 130, [], 1), oracle(lambda statistics: Dark()), unscaled, PART_PX)
    assert (len(found), found.instances.shape, found.class_names) == (0, (90, 130), ("a", "b"))


def test_methods_that_normalise_by_the_image_get_its_mean_and_deviation() -> None:
    image = np.random.default_rng(0).integers(0, 200, (130, 99, 3), dtype=np.uint8)
    given: list[Any] = []
    method = oracle(lambda statistics: given.append(statistics) or Dark())  # type: ignore[func-returns-value]
    object.__setattr__(method, "own_statistics", True)
    nuclei_of_image(image, method, lambda statistics: given.append(statistics) or 1.0, PART_PX)  # type: ignore[func-returns-value]
    for mean, std in given:
        assert (mean, std) == pytest.approx((image.mean(), image.std()))
    assert len(given) == 2
