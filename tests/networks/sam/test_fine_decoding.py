"""Masks of variants with a fine map, against a reference that draws one prompt pixel by pixel."""

import dataclasses
import math

import pytest
import torch
from segment_anything.modeling import MaskDecoder
from torch.nn import functional as F

from nucsam_monai.networks.sam import (
    build_mask_decoder,
    build_prompt_encoder,
    build_sam,
    crop_masks,
    decode_prompts,
    sam_variant,
)
from nucsam_monai.utils.errors import ConfigurationError

HEIGHT, WIDTH = 3, 2  # cells of the embedding
POINTS, LABELS = torch.tensor([[[5.0, 3], [20, 30]], [[9, 11], [0, 0]]]), torch.tensor([[1, 0], [1, -1]])


@pytest.fixture
def fine(small):
    """The small variant with a trunk."""
    return dataclasses.replace(small, patch=16, stem="efficientnet_lite0", fine_channels=4)


@pytest.fixture
def case(fine, randomise):
    """Three images and five prompts of a decoder without zeros."""
    decoder = randomise(build_mask_decoder(fine))
    encoder = randomise(build_prompt_encoder(fine, (16 * HEIGHT, 16 * WIDTH)))
    generator = torch.Generator().manual_seed(3)

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    embedding = draw(3, 32, HEIGHT, WIDTH)
    pyramid = [
        draw(3, channels, HEIGHT * 2**level, WIDTH * 2**level)
        for level, channels in enumerate(fine.pyramid_channels, start=1)
    ]
    points = torch.rand(5, 2, 2, generator=generator) * torch.tensor([16.0 * WIDTH - 1, 16.0 * HEIGHT - 1])
    labels = torch.tensor([[1, 0], [1, -1], [1, 1], [1, 0], [1, -1]])
    return decoder, encoder, embedding, pyramid, points, labels


def decode(case, counts, **options):
    decoder, encoder, embedding, pyramid, points, labels = case
    sparse, dense = encoder((points, labels))
    places = options.pop("places", encoder.places(points, labels))
    options = {"pyramid": pyramid, "places": places, **options}
    code = encoder.position_code((HEIGHT, WIDTH))
    return decode_prompts(decoder, embedding, code, sparse, dense, counts, **options)


def interpolated(feature, x, y):
    """Return what a map ``(C, h, w)`` says between its cells, the position being in cells."""
    _, height, width = feature.shape
    x, y = min(max(x, 0), width - 1), min(max(y, 0), height - 1)
    left, top = int(x), int(y)
    right, bottom = min(left + 1, width - 1), min(top + 1, height - 1)
    upper = feature[:, top, left] + (x - left) * (feature[:, top, right] - feature[:, top, left])
    lower = feature[:, bottom, left] + (x - left) * (feature[:, bottom, right] - feature[:, bottom, left])
    return upper + (y - top) * (lower - upper)


def reference(case, prompt, image, mask, with_place=True):
    """Draw one mask of one prompt pixel by pixel."""
    decoder, encoder, embedding, pyramid, points, labels = case
    sparse, dense = encoder((points[prompt : prompt + 1], labels[prompt : prompt + 1]))
    code = encoder.position_code((HEIGHT, WIDTH))
    # The middle of the points of label 1, in pixels from the image's corner.
    x, y = (points[prompt][labels[prompt] == 1].mean(0) + 0.5).tolist()
    tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    seen = torch.zeros(32)
    if with_place:
        cells = [16, 8, 4, 2]  # pixels per cell
        maps = [embedding[image], *(level[image] for level in pyramid)]
        found = [interpolated(one, x / px - 0.5, y / px - 0.5) for one, px in zip(maps, cells, strict=True)]
        seen = decoder.seen_at_place(torch.cat(found))
    tokens, cells = decoder.transformer(
        embedding[image : image + 1] + dense, code, torch.cat([(tokens + seen)[None], sparse], dim=1)
    )
    token = tokens[0, 1 + mask] + seen
    upscaled = decoder.output_upscaling(cells.mT.reshape(1, 32, HEIGHT, WIDTH))[0]
    coarse = torch.einsum("c,chw->hw", decoder.output_hypernetworks_mlps[mask](token), upscaled)
    logits = F.interpolate(coarse[None, None], scale_factor=2, mode="bilinear")[0, 0].clone()
    kernel = decoder.fine_hypernetworks_mlps[mask](token)
    top, right, down, a, b, c = decoder.place_hypernetworks_mlps[mask](token)
    for row in range(8 * HEIGHT):
        for column in range(8 * WIDTH):
            logits[row, column] += kernel @ pyramid[-1][image, :, row, column]
            if with_place:
                dx, dy = (column + 0.5) / 8 - x / 16 - right, (row + 0.5) / 8 - y / 16 - down
                tilted = 2 * torch.tanh(c) * torch.exp((a + b) / 2) * dx * dy
                logits[row, column] += top - torch.exp(a) * dx**2 - torch.exp(b) * dy**2 + tilted
    return logits


@pytest.mark.parametrize("with_place", [True, False])
@pytest.mark.parametrize("multimask", [True, False])
@pytest.mark.parametrize(("counts", "chunk"), [((2, 0, 3), None), ((0, 5, 0), 2), ((1, 3, 1), 2)])
@torch.no_grad()
def test_masks_are_those_of_a_loop_over_prompts_and_pixels(case, counts, chunk, multimask, with_place):
    options = {} if with_place else {"places": None}
    found = decode(case, counts, chunk_size=chunk, multimask=multimask, **options).logits
    masks = (1, 2, 3) if multimask else (0,)
    assert found.shape == (5, len(masks), 8 * HEIGHT, 8 * WIDTH)
    owners = [image for image, count in enumerate(counts) for _ in range(count)]
    for prompt, image in enumerate(owners):
        for position, mask in enumerate(masks):
            expected = reference(case, prompt, image, mask, with_place)
            torch.testing.assert_close(found[prompt, position], expected, atol=2e-5, rtol=1e-4)


def test_gradients_reach_every_part_and_the_used_images(case):
    decoder, _, _, pyramid, _, _ = case
    for maps in pyramid:
        maps.requires_grad_()
    output = decode(case, (2, 0, 3), multimask=True)
    (output.logits.square().mean() + output.iou.square().sum()).backward()
    without = {name for name, parameter in decoder.named_parameters() if parameter.grad is None}
    assert all(".0." in name for name in without)  # those of the single mask, which was not asked for
    for maps in pyramid:
        assert [bool(gradient.any()) for gradient in maps.grad] == [True, False, True]


def test_no_prompts_give_empty_masks_of_the_same_size(case):
    decoder, encoder, embedding, pyramid, points, labels = case
    none = (decoder, encoder, embedding, pyramid, points[:0], labels[:0])
    assert decode(none, (0, 0, 0)).logits.shape == (0, 1, 8 * HEIGHT, 8 * WIDTH)


@torch.no_grad()
def test_half_precision_draws_the_same_masks(case):
    expected = decode(case, (2, 0, 3)).logits
    with torch.autocast("cpu", torch.bfloat16):
        found = decode(case, (2, 0, 3)).logits
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0.05, rtol=0.05)


@torch.no_grad()
def test_cropped_masks_have_two_pixels_per_logit(case):
    decoded = decode(case, (2, 0, 3), chunk_size=2)
    cropped = crop_masks(decoded.logits, decoded.iou, pixels_per_logit=2)
    logits = decode(case, (2, 0, 3)).logits
    whole = F.interpolate(logits, scale_factor=2, mode="bilinear")[:, 0] > 0
    assert cropped.areas.tolist() == whole.sum(dim=(1, 2)).tolist()


def test_a_missing_or_wrong_pyramid_is_refused(case):
    _, _, _, pyramid, _, _ = case
    for wrong in ((), pyramid[:2], [*pyramid[:2], pyramid[2][:, :3]]):
        with pytest.raises(ConfigurationError, match="Pass the pyramid"):
            decode(case, (2, 0, 3), pyramid=wrong)


@torch.no_grad()
def test_official_variants_know_nothing_of_it(case, small, randomise):
    _, _, embedding, pyramid, points, labels = case
    decoder = randomise(build_mask_decoder(small))
    assert type(decoder) is MaskDecoder
    encoder = randomise(build_prompt_encoder(small, (4 * HEIGHT, 4 * WIDTH)))
    small_case = (decoder, encoder, embedding, (), points / 4, labels)
    placed, plain = decode(small_case, (2, 0, 3)), decode(small_case, (2, 0, 3), places=None)
    assert torch.equal(placed.logits, plain.logits)
    assert placed.logits.shape == (5, 1, 4 * HEIGHT, 4 * WIDTH)
    with pytest.raises(ConfigurationError, match="expected none"):
        decode(small_case, (2, 0, 3), pyramid=pyramid)


def test_before_any_training_every_prompt_has_the_same_round_hill(fine):
    decoder = build_mask_decoder(fine)
    hills = decoder.place_hypernetworks_mlps[0](torch.randn(2, 32))
    assert hills[0].tolist() == hills[1].tolist() == pytest.approx([2, 0, 0, math.log(10), math.log(10), 0])


@torch.no_grad()
def test_sam_of_the_compact_variant_answers_every_prompt_from_its_own_image():
    torch.manual_seed(0)
    sam = build_sam(sam_variant("hybrid"), 64).eval()
    images = torch.randn(2, 3, 64, 64)
    together = sam(images, POINTS, LABELS, torch.tensor([1, 1])).logits
    assert together.shape == (2, 1, 32, 32)
    for index in range(2):
        own = slice(index, index + 1)
        alone = sam(images[own], POINTS[own], LABELS[own], torch.tensor([1])).logits
        torch.testing.assert_close(together[own], alone, atol=1e-4, rtol=1e-3)
