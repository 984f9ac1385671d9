import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.utils.components import connected_components
from tests.oracles.flood_fill import flood_fill

MASKS = hnp.arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8)))


@settings(max_examples=100, deadline=None)
@given(MASKS, st.booleans())
def test_components_equal_those_of_a_flood_fill(mask, transposed):
    mask = mask.T if transposed else mask  # not contiguous
    labels = connected_components(mask)
    assert labels.dtype == np.int32
    assert labels.shape == mask.shape
    found = {
        frozenset(zip(*(axis.tolist() for axis in np.nonzero(labels == value)), strict=True))
        for value in range(1, labels.max() + 1)
    }
    assert found == {frozenset(component) for component in flood_fill(mask)}


def test_an_image_without_pixels_has_no_components():
    assert connected_components(np.zeros((0, 5), dtype=bool)).shape == (0, 5)
