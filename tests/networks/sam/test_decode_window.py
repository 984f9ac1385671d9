"""Decoding on the cells around each prompt, against decoding each crop of the embedding as an image of its own."""

import dataclasses

import pytest
import torch

from nucsam_monai.networks.sam import build_sam
from nucsam_monai.networks.sam.decode_window import decode_in_windows
from nucsam_monai.networks.sam.decoder import decode_prompts
from nucsam_monai.utils.errors import ConfigurationError

ROWS, COLUMNS, WINDOW, PATCH = 5, 6, 3, 16
COUNTS = [3, 0, 2]
POINTS = torch.tensor([[[1.0, 2]], [[50, 40]], [[95, 79]], [[30, 60]], [[70, 20]]])
FIRST_CELLS = [(0, 0), (2, 1), (3, 2), (0, 2), (3, 0)]  # of the windows, as (x, y)


@pytest.fixture(params=[None, 1.0, 2.2], ids=["plain", "small masks", "some reach their edges"])
def inputs(request, small, randomise):
    """Return a decoder and its arguments for five prompts on the first and last of three images."""
    variant = dataclasses.replace(small, patch=PATCH)
    if request.param is not None:
        variant = dataclasses.replace(variant, stem="efficientnet_lite0", fine_channels=4)
    sam = build_sam(variant, (PATCH * ROWS, PATCH * COLUMNS))
    randomise(sam.mask_decoder)
    randomise(sam.prompt_encoder)
    with torch.no_grad():
        for hills in getattr(sam.mask_decoder, "place_hypernetworks_mlps", ()):
            hills.layers[-1].bias[0] += request.param
    generator = torch.Generator().manual_seed(1)

    def maps(channels, scale):
        return torch.randn(3, channels, ROWS * scale, COLUMNS * scale, generator=generator)

    pyramid = [maps(channels, 2**level) for level, channels in enumerate(variant.pyramid_channels, start=1)]
    labels = torch.ones(5, 1, dtype=torch.long)
    sparse, dense = sam.prompt_encoder((POINTS, labels))
    places = sam.prompt_encoder.places(POINTS, labels)
    code = sam.prompt_encoder.position_code((ROWS, COLUMNS))
    arguments = (sam.mask_decoder, maps(32, 1), code, sparse, dense, COUNTS)
    return arguments, {"pyramid": pyramid, "places": places}


def crop(maps, x, y):
    scale = maps.shape[-1] // COLUMNS
    return maps[:, :, scale * y : scale * (y + WINDOW), scale * x : scale * (x + WINDOW)]


def of_crop(inputs, prompt, image, x, y):
    """Decode one prompt on its crop alone."""
    (decoder, embedding, code, sparse, dense, _), options = inputs
    one = slice(prompt, prompt + 1)
    own = slice(image, image + 1)
    places = (options["places"][one] * torch.tensor([COLUMNS, ROWS]) - torch.tensor([x, y])) / WINDOW
    return decode_prompts(
        decoder,
        crop(embedding[own], x, y),
        crop(code, x, y),
        sparse[one],
        crop(dense[:1], x, y),
        [1],
        pyramid=[crop(maps[own], x, y) for maps in options["pyramid"]],
        places=places,
    )


def reaches_inner_edge(logits, x, y):
    found = logits[0, 0] > 0
    return bool(
        (x > 0 and found[:, 0].any())
        or (y > 0 and found[0].any())
        or (x + WINDOW < COLUMNS and found[:, -1].any())
        or (y + WINDOW < ROWS and found[-1].any())
    )


def test_equals_decoding_of_crops_and_of_the_image_where_a_mask_leaves_its_crop(inputs):
    arguments, options = inputs
    with torch.no_grad():
        found = decode_in_windows(*arguments, window=WINDOW, **options)
        whole = decode_prompts(*arguments, **options)
        for prompt, (image, (x, y)) in enumerate(zip([0, 0, 0, 2, 2], FIRST_CELLS, strict=True)):
            expected = of_crop(inputs, prompt, image, x, y)
            if reaches_inner_edge(expected.logits, x, y):
                logits, iou = whole.logits[prompt], whole.iou[prompt]
            else:
                scale = expected.logits.shape[-1] // WINDOW
                logits = torch.full_like(whole.logits[prompt], -10.0)
                place = (slice(scale * y, scale * (y + WINDOW)), slice(scale * x, scale * (x + WINDOW)))
                logits[0][place] = expected.logits[0, 0]
                iou = expected.iou[0]
            torch.testing.assert_close(found.logits[prompt], logits, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found.iou[prompt], iou, rtol=1e-4, atol=1e-4)


def test_a_window_as_large_as_the_image_is_the_image(inputs):
    arguments, options = inputs
    with torch.no_grad():
        found = decode_in_windows(*arguments, window=COLUMNS, **options)
        expected = decode_prompts(*arguments, **options)
    torch.testing.assert_close(found.logits, expected.logits)


@pytest.mark.parametrize("inputs", [2.2], indirect=True)
def test_every_cell_of_a_window_and_no_other_gets_a_gradient(inputs):
    (decoder, embedding, *others), options = inputs
    options["pyramid"] = [maps.requires_grad_() for maps in options["pyramid"]]
    embedding.requires_grad_()
    found = decode_in_windows(decoder, embedding, *others, window=WINDOW, **options)
    cut = (found.logits.flatten(1) != -10).all(dim=1)  # decoded on the whole image
    found.logits[~cut].sum().backward()
    touched = embedding.grad.abs().sum(dim=1) > 0
    expected = torch.zeros_like(touched)
    for image, (x, y), is_cut in zip([0, 0, 0, 2, 2], FIRST_CELLS, cut.tolist(), strict=True):
        if not is_cut:
            expected[image, y : y + WINDOW, x : x + WINDOW] = True
    assert cut.tolist() == [False, True, False, True, True]
    torch.testing.assert_close(touched, expected)


def test_no_prompts(inputs):
    (decoder, embedding, code, sparse, dense, _), options = inputs
    places = options.pop("places")
    found = decode_in_windows(
        decoder, embedding, code, sparse[:0], dense[:1], [0, 0, 0], window=3, places=places[:0], **options
    )
    assert found.logits.shape[:2] == (0, 1)


def test_a_negative_window_is_refused(small):
    with pytest.raises(ConfigurationError, match="decode_window -1: expected 0"):
        build_sam(small, 32, decode_window=-1)
