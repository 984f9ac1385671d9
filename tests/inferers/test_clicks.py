"""Clicks and boxes, and the nuclei they stand for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from nucsam_monai.inferers import Clicks, ClickSegmenter
from nucsam_monai.utils.image_source import ArrayImage
from nucsam_monai.utils.nucleus import Nucleus, component_at, paint_nuclei, split_by_clicks
from tests.apps.monailabel.analytic import DarkNetwork, discs, normalised


def segmenter(tile_px: int = 64) -> ClickSegmenter:
    return ClickSegmenter(DarkNetwork(), normalised, tile_px, "fp32")


def clicks(*foreground: tuple[float, float], boxes: tuple[tuple[float, ...], ...] = ()) -> Clicks:
    return Clicks(
        np.array(foreground, dtype=float).reshape(-1, 2),
        np.zeros((0, 2)),
        np.array(boxes, dtype=float).reshape(-1, 4),
    )


def test_each_click_takes_the_part_of_the_mask_that_it_is_on() -> None:
    image = discs(50, 90, [(20, 20), (60, 25)], 8)
    source = ArrayImage(image)
    found = segmenter().segment(source, clicks((22, 18), (60, 25)))
    painted = paint_nuclei(found, (50, 90))
    assert (painted == 1).sum() == (painted == 2).sum() > 150
    assert painted[20, 20] == 1
    assert painted[25, 60] == 2
    assert ((painted > 0) == (image[..., 0] < 100)).all()


def test_a_second_click_splits_two_merged_nuclei() -> None:
    image = discs(64, 64, [(24, 32), (38, 32)], 9)
    source, network = ArrayImage(image), segmenter()
    assert len(network.segment(source, clicks((24, 32)))) == 1
    found = network.segment(source, clicks((24, 32), (38, 32)))
    painted = paint_nuclei(found, (64, 64))
    assert painted[32, 24] == 1
    assert painted[32, 38] == 2
    assert set(np.unique(painted[:, :29])) == {0, 1}
    assert set(np.unique(painted[:, 34:])) == {0, 2}
    assert ((painted > 0) == (image[..., 0] < 100)).all()
    assert network.encoded_tiles == 1


def test_an_image_is_encoded_once_however_often_it_comes() -> None:
    network = segmenter()
    for x in (20, 21, 22):
        network.segment(ArrayImage(discs(64, 64, [(20, 20)], 8)), clicks((x, 20)))
    assert network.encoded_tiles == 1
    network.segment(ArrayImage(discs(64, 64, [(21, 20)], 8)), clicks((20, 20)))
    assert network.encoded_tiles == 2


def test_clicks_on_a_large_image_go_to_the_tiles_around_them() -> None:
    centres = [(31, 33), (64, 64), (96, 97), (150, 10), (155, 118)]
    image = discs(123, 171, centres, 7)
    found = segmenter().segment(ArrayImage(image), clicks(*centres))
    painted = paint_nuclei(found, (123, 171))
    assert [painted[y, x] for x, y in centres] == [1, 2, 3, 4, 5]
    assert ((painted > 0) == (image[..., 0] < 100)).all()


def test_a_box_takes_what_is_in_it() -> None:
    image = discs(64, 64, [(15, 15), (45, 45)], 8)
    found = segmenter().segment(ArrayImage(image), clicks(boxes=((36, 36, 54, 54), (6, 6, 24, 24))))
    painted = paint_nuclei(found, (64, 64))
    assert (painted[45, 45], painted[15, 15]) == (1, 2)
    assert ((painted > 0) == (image[..., 0] < 100)).all()


def test_a_box_takes_the_part_of_the_mask_in_its_middle() -> None:
    class Silent(DarkNetwork):
        def decode_clicks(self, embedding, points, labels):  # type: ignore[no-untyped-def]
            dark = super().decode_clicks(embedding, points, labels)
            return dark._replace(logits=torch.full_like(dark.logits, -5.0))

    image = discs(64, 64, [(20, 30), (33, 42)], 6)
    asked = clicks(boxes=((13, 23, 28, 38),))
    (found,) = ClickSegmenter(Silent(), normalised, 64, "fp32").segment(ArrayImage(image), asked)
    painted = paint_nuclei([found], (64, 64)) > 0
    assert painted[30, 20]
    assert not painted[37:, 28:].any()
    assert (painted == (image[..., 0] < 100))[:36, :26].all()


def test_nuclei_are_not_invented_where_nothing_is() -> None:
    nothing = segmenter().segment(ArrayImage(discs(40, 40, [], 1)), clicks((5, 5), boxes=((1, 1, 9, 9),)))
    assert nothing == [None, None]


def test_two_clicks_on_one_pixel_are_one_nucleus() -> None:
    found = segmenter().segment(ArrayImage(discs(40, 40, [(20, 20)], 6)), clicks((20, 20), (20.2, 19.9)))
    assert [nucleus is None for nucleus in found] == [False, True]


def test_background_goes_to_the_network_with_every_click() -> None:
    seen = []

    class Recorder(DarkNetwork):
        def decode_clicks(self, embedding, points, labels):  # type: ignore[no-untyped-def]
            seen.append((points.tolist(), labels.tolist()))
            return super().decode_clicks(embedding, points, labels)

    source = ArrayImage(discs(64, 64, [(20, 20), (40, 40)], 6))
    marked = Clicks(np.array([[20.0, 20], [40, 40]]), np.array([[30.0, 30]]), np.zeros((0, 4)))
    ClickSegmenter(Recorder(), normalised, 64, "fp32").segment(source, marked)
    assert seen == [([[[20, 20], [30, 30]], [[40, 40], [30, 30]]], [[1, 0], [1, 0]])]


@pytest.mark.parametrize("tile_px", [64, 256])
def test_small_nuclei_are_looked_at_in_the_image_at_twice_its_size(tile_px: int) -> None:
    centres = [(21, 20), (95, 61), (150, 30)]
    image = discs(90, 170, centres, 4)
    source = ArrayImage(image)
    boxes = ((145, 25, 155, 35),)
    once = ClickSegmenter(DarkNetwork(), normalised, tile_px, "fp32")
    twice = ClickSegmenter(DarkNetwork(), normalised, tile_px, "fp32", enlarge_below_px=12)
    painted = [
        paint_nuclei(one.segment(source, clicks((95, 61), (21, 20), boxes=boxes)), (90, 170))
        for one in (once, twice)
    ]
    assert twice.encoded_tiles > once.encoded_tiles
    assert [painted[1][y, x] for x, y in centres] == [2, 1, 3]
    assert np.isin(np.unique(painted[1]), [0, 1, 2, 3]).all()
    dark = ndimage.binary_dilation(image[..., 0] < 100)  # an edge is half a pixel off at most
    assert not painted[1][~dark].any()
    assert ((painted[0] > 0) != (painted[1] > 0)).mean() < 0.01
    large = ArrayImage(discs(90, 170, centres, 12))
    twice.segment(large, clicks((95, 61)))
    before = twice.encoded_tiles
    twice.segment(large, clicks((96, 62)))
    assert twice.encoded_tiles == before


@given(
    hnp.arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    st.integers(0, 5),
    st.integers(0, 5),
)
def test_half_the_size_is_the_pixels_covered_by_half(mask: np.ndarray, x: int, y: int) -> None:
    canvas = np.zeros((16, 16), dtype=int)
    canvas[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    expected = canvas.reshape(8, 2, 8, 2).sum(axis=(1, 3)) >= 2
    assert (paint_nuclei([Nucleus(x, y, mask).halved()], (8, 8)) == expected).all()


def test_split_keeps_the_pixels_of_one_alone() -> None:
    left = Nucleus(0, 0, np.ones((4, 6), dtype=bool), score=0.5)
    right = Nucleus(4, 0, np.ones((4, 6), dtype=bool), class_id=1)
    one, other = split_by_clicks([left, right], np.array([[1, 1], [8, 1]]))
    painted = paint_nuclei([one, other], (4, 10))
    assert (painted[:, :4] == 1).all()
    assert (painted[:, 6:] == 2).all()
    assert (painted > 0).all()
    assert (one.score, other.class_id) == (0.5, 1)


def test_component_at_takes_the_nearest_part() -> None:
    mask = np.zeros((5, 9), dtype=bool)
    mask[1, 1] = mask[3, 6:8] = True
    nucleus = Nucleus(10, 20, mask)
    assert component_at(nucleus, 11, 21).box == (11, 21, 12, 22)
    assert component_at(nucleus, 18, 24).box == (16, 23, 18, 24)
