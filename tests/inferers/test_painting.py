import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.inferers import paint_masks

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
