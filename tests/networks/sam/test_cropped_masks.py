import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional

from nucsam_monai.networks.sam import build_mask_decoder, build_prompt_encoder, decode_prompts
from nucsam_monai.networks.sam.cropped_masks import crop_masks
from nucsam_monai.utils.errors import ConfigurationError


def full_size(logits, factor, image_size=None):
    """All masks at the image's size: what cropping must never need."""
    size = (factor * logits.shape[2], factor * logits.shape[3])
    pixels = functional.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    height, width = image_size or size
    return (pixels[:, 0, :height, :width] > 0).numpy()


def assert_crops_equal(found, expected):
    assert len(found) == len(expected) == len(found.boxes) == len(found.areas)
    for box, area, mask, whole in zip(found.boxes.tolist(), found.areas, found.masks, expected, strict=True):
        left, top, right, bottom = box
        pasted = np.zeros_like(whole)
        pasted[top:bottom, left:right] = mask
        assert np.array_equal(pasted, whole)
        assert area == whole.sum()
        assert mask.dtype == np.bool_
        assert mask.base is None
        if area:  # the smallest box: every edge touches the mask
            assert mask[0].any() and mask[-1].any() and mask[:, 0].any() and mask[:, -1].any()  # noqa: PT018
        else:
            assert box == [0, 0, 0, 0]


@given(
    seed=st.integers(0, 2**16),
    shape=st.tuples(st.integers(0, 3), st.integers(1, 12), st.integers(1, 12)),
    threshold=st.floats(-1, 3),
    factor=st.sampled_from([1, 2, 4, 8]),
    cut=st.tuples(st.integers(0, 7), st.integers(0, 7)),
)
@settings(deadline=None, max_examples=150)
def test_crops_equal_full_size_masks(seed, shape, threshold, factor, cut):
    count, height, width = shape
    noise = torch.randn(count, 1, height, width, generator=torch.Generator().manual_seed(seed))
    logits = noise - threshold
    image_size = (max(1, factor * height - cut[0]), max(1, factor * width - cut[1]))
    found = crop_masks(logits, torch.zeros(count, 1), pixels_per_logit=factor, image_size=image_size)
    assert_crops_equal(found, full_size(logits, factor, image_size))


def test_half_precision_and_nuclei_like_blobs():
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centres = torch.tensor([[0.0, 0.0], [31.5, 20.0], [63.0, 63.0], [5.0, 60.0]])
    distance = (rows - centres[:, :1, None]).hypot(columns - centres[:, 1:, None])
    logits = (6.3 - distance).unsqueeze(1).bfloat16()
    found = crop_masks(logits, torch.rand(4, 1).bfloat16(), pixels_per_logit=4)
    assert_crops_equal(found, full_size(logits, 4))
    assert sum(mask.nbytes for mask in found.masks) < 0.1 * full_size(logits, 4).nbytes


def test_a_mask_that_vanishes_between_pixels_is_empty():
    logits = torch.full((1, 1, 5, 5), -100.0)
    logits[0, 0, 2, 2] = 1.0
    found = crop_masks(logits, torch.ones(1, 1), pixels_per_logit=4)
    assert found.areas.tolist() == [0]
    assert found.masks[0].shape == (0, 0)


@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((2, 3, 4, 4), {"pixels_per_logit": 4}, "one mask per prompt"),
        ((2, 1, 4, 4), {"pixels_per_logit": 0}, "pixels_per_logit 0"),
        ((2, 1, 4, 4), {"pixels_per_logit": 2, "image_size": (9, 8)}, "at most the 8 x 8 px"),
        ((2, 1, 4, 4), {"pixels_per_logit": 2, "image_size": (0, 8)}, "at most the 8 x 8 px"),
    ],
)
def test_what_does_not_fit_is_refused(shape, options, message):
    with pytest.raises(ConfigurationError, match=message):
        crop_masks(torch.zeros(shape), torch.zeros(shape[:2]), **options)


@pytest.mark.parametrize("counts", [[3, 0, 2], [0, 0, 0]])
def test_crops_of_decoded_chunks_are_those_of_full_size_masks(small, randomise, counts):
    decoder = randomise(build_mask_decoder(small))
    prompt_encoder = randomise(build_prompt_encoder(small, (20, 16)))
    torch.manual_seed(3)
    points, embedding = torch.rand(sum(counts), 1, 2) * 16, torch.randn(3, 32, 5, 4)
    sparse, dense = prompt_encoder((points, torch.ones(len(points), 1)))
    arguments = (decoder, embedding, prompt_encoder.position_code((5, 4)), sparse, dense, counts)
    whole = decode_prompts(*arguments)
    decoded = decode_prompts(*arguments, chunk_size=2)
    found = crop_masks(decoded.logits, decoded.iou, pixels_per_logit=2, image_size=(39, 30))
    assert_crops_equal(found, full_size(whole.logits.detach(), 2, (39, 30)))
    np.testing.assert_allclose(found.iou, whole.iou[:, 0].detach().numpy(), atol=1e-5)
    assert found.boxes.shape == (sum(counts), 4)
    assert found.areas.dtype == np.int64
