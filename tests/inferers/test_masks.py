import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.inferers.masks import (
    NO_MASKS,
    NucleusMasks,
    best_first,
    join_masks,
    one_mask_per_prompt,
    paint,
    paint_masks,
    suppress_duplicates,
)


def rectangles(boxes, iou, prompts=None, cut=None):
    boxes = np.array(boxes, dtype=np.int64).reshape(-1, 4)
    masks = [np.ones((y1 - y0, x1 - x0), dtype=bool) for x0, y0, x1, y1 in boxes]
    return NucleusMasks(
        boxes,
        masks,
        np.array([mask.sum() for mask in masks], dtype=np.int64),
        np.array(iou, dtype=np.float32),
        np.arange(len(masks)) if prompts is None else np.array(prompts),
        np.zeros(len(masks), dtype=np.int64),
        np.zeros(len(masks), dtype=bool) if cut is None else np.array(cut),
    )


BOX = st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(1, 9), st.integers(1, 9)).map(
    lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3])
)


@given(st.lists(st.tuples(BOX, st.integers(0, 5)), max_size=25), st.sampled_from([0, 0.3, 0.5, 0.75, 1]))
def test_boxes_and_masks_of_rectangles_agree(drawn, threshold):
    masks = best_first(rectangles([box for box, _ in drawn], [score / 5 for _, score in drawn]))
    by_box = suppress_duplicates(masks, threshold, "box")
    by_mask = suppress_duplicates(masks, threshold, "mask")
    assert by_box.prompts.tolist() == by_mask.prompts.tolist()


def test_a_suppressed_mask_suppresses_nothing():
    chain = rectangles([(0, 0, 10, 10), (0, 3, 10, 13), (0, 6, 10, 16)], [0.9, 0.8, 0.7])
    for rule in ("box", "mask"):
        assert suppress_duplicates(chain, 0.5, rule).prompts.tolist() == [0, 2]


def test_parts_of_a_large_nucleus_are_duplicates_by_their_own_size():
    whole_and_parts = rectangles([(0, 0, 20, 20), (2, 2, 8, 8), (12, 12, 20, 24)], [0.9, 0.8, 0.7])
    for rule in ("box", "mask"):
        assert len(suppress_duplicates(whole_and_parts, 0.5, rule)) == 3
    assert suppress_duplicates(whole_and_parts, 0.5, "smaller_mask").prompts.tolist() == [0]
    # two thirds of the last one lie in the first
    assert suppress_duplicates(whole_and_parts, 0.7, "smaller_mask").prompts.tolist() == [0, 2]


def test_exactly_the_threshold_is_not_a_duplicate():
    pair = rectangles([(0, 0, 10, 1), (0, 0, 3, 1)], [0.9, 0.8])
    for rule in ("box", "mask"):
        assert len(suppress_duplicates(pair, 0.3, rule)) == 2
        assert len(suppress_duplicates(pair, 0.299, rule)) == 1


def test_of_one_prompt_a_whole_mask_beats_better_cut_ones():
    square = (0, 0, 4, 4)
    masks = rectangles(
        [square] * 5, [0.9, 0.4, 0.5, 0.2, 0.3], [3, 3, 3, 1, 1], [True, False, False, True, True]
    )
    chosen = one_mask_per_prompt(masks)
    assert chosen.prompts.tolist() == [1, 3]
    assert chosen.iou.tolist() == [np.float32(0.3), 0.5]


def test_nothing_stays_nothing():
    for rule in ("box", "mask"):
        assert len(suppress_duplicates(best_first(one_mask_per_prompt(join_masks([]))), 0.5, rule)) == 0
    instances, visible = paint(NO_MASKS, (3, 4))
    assert instances.tolist() == np.zeros((3, 4), dtype=int).tolist()
    assert len(visible) == 0


def test_the_best_mask_wins_and_hidden_ones_leave_no_gap_in_the_ids():
    masks = rectangles([(0, 0, 6, 6), (1, 1, 3, 3), (2, 2, 8, 8)], [0.9, 0.8, 0.7], [2, 0, 1])
    instances, visible = paint(masks, (9, 9))
    assert visible.tolist() == [2, 0]
    assert (instances[:6, :6] == 2).all()
    assert np.count_nonzero(instances == 1) == 36 - 16


def test_cleaning():
    ring = rectangles([(0, 0, 9, 7)], [0.5])
    ring.masks[0][2:5, 2:5] = False  # a hole
    ring.masks[0][:, 6] = False  # and two parts
    instances, _ = paint(ring, (7, 9))
    assert np.array_equal(instances > 0, ring.masks[0])
    whole = paint(ring, (7, 9), fill_holes=True)[0]
    assert (whole[:, :6] == 1).all()
    assert not whole[:, 6].any()
    largest = paint(ring, (7, 9), largest_component=True)[0]
    assert not largest[:, 6:].any()
    assert not largest[3, 3]


def test_a_hole_that_another_nucleus_fills_is_not_painted_over():
    masks = rectangles([(2, 2, 5, 5), (0, 0, 7, 7)], [0.9, 0.5])
    masks.masks[1][2:5, 2:5] = False
    instances, _ = paint(masks, (7, 7), fill_holes=True)
    assert (instances[2:5, 2:5] == 1).all()
    assert np.count_nonzero(instances == 2) == 40


def test_what_a_mask_gives_up_is_left_to_worse_ones():
    masks = rectangles([(0, 0, 9, 3), (6, 0, 9, 3)], [0.9, 0.5])
    masks.masks[0][:, 5] = False
    instances, _ = paint(masks, (3, 9), largest_component=True)
    assert instances[0].tolist() == [1, 1, 1, 1, 1, 0, 2, 2, 2]


STACKS = hnp.arrays(bool, st.tuples(st.integers(0, 6), st.integers(1, 5), st.integers(1, 5)))


@settings(max_examples=100, deadline=None)
@given(STACKS, st.data())
def test_each_pixel_belongs_to_the_last_mask_that_covers_it(stack, data):
    scores = data.draw(st.lists(st.floats(0.125, 1, width=32), min_size=len(stack), max_size=len(stack)))
    instances, painted = paint_masks(iter(stack), scores, stack.shape[1:])
    assert (instances.dtype, painted.dtype) == (np.int32, np.float32)
    assert instances.shape == painted.shape == stack.shape[1:]
    owners = {}
    for y, x in np.ndindex(stack.shape[1:]):
        above = [number for number, mask in enumerate(stack) if mask[y, x]]
        assert (instances[y, x] > 0) == bool(above)
        assert painted[y, x] == (scores[above[-1]] if above else 0)
        if above:
            assert owners.setdefault(above[-1], instances[y, x]) == instances[y, x]
    assert [owners[number] for number in sorted(owners)] == list(range(1, len(owners) + 1))


def test_empty_and_hidden_masks_get_no_id():
    low = np.array([[True, True, False, False]])
    nothing = np.zeros((1, 4), dtype=bool)
    high = np.array([[True, True, True, False]])
    instances, scores = paint_masks([low, nothing, high], [0.25, 0.5, 0.75], (1, 4))
    assert instances.tolist() == [[1, 1, 1, 0]]
    assert scores.tolist() == [[0.75, 0.75, 0.75, 0]]
