import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from nucsam_monai.metrics import mask_ious
from nucsam_monai.metrics.cumulative import PromptedMaskMetric
from nucsam_monai.utils.errors import ConfigurationError

MASKS = hnp.arrays(np.bool_, st.tuples(st.just(2), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5)))


def slow_iou(true, found):
    first, second = ({tuple(pixel) for pixel in np.argwhere(mask)} for mask in (true, found))
    return len(first & second) / len(first | second) if first | second else 1.0


@settings(max_examples=60, deadline=None)
@given(MASKS, st.sampled_from([bool, np.uint8, np.float32]))
def test_ious_are_those_of_the_sets_of_pixels(pair, kind):
    expected = [slow_iou(true, found) for true, found in zip(*pair, strict=True)]
    np.testing.assert_allclose(mask_ious(pair[0].astype(kind), pair[1]), expected)


def test_stacks_of_different_shapes_are_refused():
    for other in (np.zeros((2, 3, 3)), np.zeros((3, 3))):
        with pytest.raises(ConfigurationError, match="two stacks of one shape"):
            mask_ious(np.zeros((1, 3, 3)), other)


def test_images_count_alike_and_those_without_prompts_not_at_all():
    right, half = torch.tensor([[[1, 1]]]), torch.tensor([[[1, 0]]])
    metric = PromptedMaskMetric()
    metric(y_pred=[torch.cat([right, right]), right[:0]], y=[torch.cat([right, half]), right[:0]])
    metric(y_pred=[half], y=[right])
    np.testing.assert_array_equal(metric.rows()[:, 0], [0.75, np.nan, 0.5])
    assert metric.aggregate() == {"mask_iou": 0.625, "jaccard_distance": 0.375}


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ConfigurationError, match="one mask per prompt"):
        PromptedMaskMetric()(y_pred=[torch.zeros(2, 4, 4)], y=[torch.zeros(3, 4, 4)])
