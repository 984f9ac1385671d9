"""Large images are segmented in parts, and come back as small ones do."""

from typing import Any

import numpy as np
import pytest

from nucsam_monai.utils.prediction import NUCLEUS_DTYPE, NucleiPrediction, prediction_from_instances
from nucsam_monai.wsi.image import nuclei_of_image
from tests.apps.monailabel.analytic import discs
from tests.wsi.slides import Oracle, TiledOracle, oracle, picture_of, random_nuclei, without_lines
from tests.wsi.test_regions import Dark, same_up_to_ids

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
