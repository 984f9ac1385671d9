"""Every way through the decoder against the official one, image by image."""

from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from nucsam_monai.networks.sam import build_mask_decoder, build_prompt_encoder, decode_prompts, sam_variant
from tests.oracles.official_decoder import decode_image_by_image, official_decoder

GRID = (5, 4)


class Inputs(NamedTuple):
    embedding: Tensor
    image_pe: Tensor
    sparse: Tensor
    dense: Tensor


@pytest.fixture(scope="module")
def parts():
    """The decoder, the prompt encoder and the official decoder of a variant, with the same weights."""
    built = {}

    def of(name):
        if name not in built:
            variant = sam_variant(name)
            torch.manual_seed(2)
            decoder = build_mask_decoder(variant)
            size = (GRID[0] * variant.patch, GRID[1] * variant.patch)
            prompt_encoder = build_prompt_encoder(variant, size)
            for parameter in decoder.parameters():  # no bias or normalisation stays trivial
                if parameter.ndim == 1:
                    torch.nn.init.normal_(parameter, mean=float(parameter.mean()), std=0.2)
            built[name] = decoder, prompt_encoder, official_decoder(variant, decoder.state_dict())
        return built[name]

    return of


def inputs(prompt_encoder, images, prompts, kind="points", points=1) -> Inputs:
    generator = torch.Generator().manual_seed(images + 10 * prompts)
    coordinates = 30 * torch.rand(prompts, points, 2, generator=generator)
    labels = torch.arange(prompts * points).view(prompts, points) % 2
    corners = 30 * torch.rand(prompts, 4, generator=generator)
    masks = torch.randn(prompts, 1, 4 * GRID[0], 4 * GRID[1], generator=generator)
    with torch.no_grad():
        sparse, dense = prompt_encoder(
            (coordinates, labels) if kind != "boxes" else None,
            corners if kind == "boxes" else None,
            masks if kind == "masks" else None,
        )
        embedding = torch.randn(images, prompt_encoder.embed_dim, *GRID, generator=generator)
        return Inputs(embedding, prompt_encoder.position_code(GRID), sparse, dense)


def assert_equal(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("vit_tiny", (3,)),
        ("vit_tiny", (0, 2)),
        ("vit_tiny", (3, 0)),
        ("vit_tiny", (1, 1)),
        ("vit_tiny", (2, 0, 3)),
        ("vit_b", (0, 2, 1)),
    ],
)
@pytest.mark.parametrize("kind", ["points", "boxes", "masks"])
@pytest.mark.parametrize("multimask", [False, True])
@torch.no_grad()
def test_equals_the_official_decoder(parts, name, kind, counts, multimask):
    decoder, prompt_encoder, official = parts(name)
    given_inputs = inputs(prompt_encoder, len(counts), sum(counts), kind)
    expected = decode_image_by_image(official, *given_inputs, counts, multimask=multimask)
    for chunk in (None, 2, "auto"):
        options = {"multimask": multimask, "return_upscaled": True, "chunk_size": chunk}
        assert_equal(decode_prompts(decoder, *given_inputs, counts, **options)[:3], expected)


@pytest.mark.parametrize("points", [2, 12, 40])
@pytest.mark.parametrize("kind", ["points", "masks"])
@torch.no_grad()
def test_many_tokens_take_the_plain_way(parts, points, kind):
    decoder, prompt_encoder, official = parts("vit_b")
    given_inputs = inputs(prompt_encoder, 2, 3, kind, points)
    expected = decode_image_by_image(official, *given_inputs, [1, 2])
    assert_equal(decode_prompts(decoder, *given_inputs, [1, 2], return_upscaled=True)[:3], expected)


@torch.no_grad()
def test_a_projection_with_an_addition_is_not_taken_apart(parts):
    decoder, prompt_encoder, official = parts("vit_tiny")
    given_inputs = inputs(prompt_encoder, 1, 3, "masks")

    class Doubled(torch.nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    for network in (decoder, official):
        network.transformer.layers[1].cross_attn_image_to_token.q_proj.__class__ = Doubled
    try:
        expected = decode_image_by_image(official, *given_inputs, [3])
        assert_equal(decode_prompts(decoder, *given_inputs, [3])[:2], expected[:2])
    finally:
        for network in (decoder, official):
            network.transformer.layers[1].cross_attn_image_to_token.q_proj.__class__ = torch.nn.Linear
    assert not torch.allclose(decode_prompts(decoder, *given_inputs, [3]).logits, expected[0], atol=1e-3)


@torch.no_grad()
def test_ragged_counts_in_any_chunks(parts):
    decoder, prompt_encoder, official = parts("vit_tiny")

    @settings(deadline=None, max_examples=15)
    @given(
        counts=st.lists(st.integers(0, 4), min_size=1, max_size=4).filter(any),
        chunk=st.integers(1, 6),
        kind=st.sampled_from(["points", "masks"]),
    )
    def check(counts, chunk, kind):
        given_inputs = inputs(prompt_encoder, len(counts), sum(counts), kind)
        expected = decode_image_by_image(official, *given_inputs, counts)
        assert_equal(decode_prompts(decoder, *given_inputs, counts, chunk_size=chunk)[:2], expected[:2])

    check()


@pytest.mark.parametrize(
    ("kind", "chunk", "multimask"), [("points", None, False), ("points", 2, True), ("masks", 2, False)]
)
def test_gradients_equal_the_official_ones(parts, kind, chunk, multimask):
    decoder, prompt_encoder, official = parts("vit_tiny")
    counts = [2, 0, 3]

    def gradients(network, decode):
        tensors = inputs(prompt_encoder, len(counts), sum(counts), kind)
        dense = tensors.dense if kind == "masks" else tensors.dense[:1]
        leaves = [tensors.embedding, tensors.sparse, dense.clone()]
        for leaf in leaves:
            leaf.detach_().requires_grad_()
        network.zero_grad(set_to_none=True)
        dense = leaves[2].expand(sum(counts), -1, -1, -1)
        logits, iou, *_ = decode(network, leaves[0], tensors.image_pe, leaves[1], dense, counts)
        (logits.square().mean() + logits.sin().mean() + iou.square().sum()).backward()
        found = {name: p.grad for name, p in network.named_parameters()}
        return found | {f"input {i}": leaf.grad for i, leaf in enumerate(leaves)}

    def ours(*arguments):
        return decode_prompts(*arguments, multimask=multimask, chunk_size=chunk)

    def theirs(*arguments):
        return decode_image_by_image(*arguments, multimask=multimask)

    expected = gradients(official, theirs)
    for name, found in gradients(decoder, ours).items():
        if found is None:  # a hyper-network whose mask is not returned
            assert expected[name] is None or not expected[name].any(), name
            continue
        scale = max(float(expected[name].abs().max()), 1e-2)
        torch.testing.assert_close(found, expected[name], rtol=0, atol=2e-5 * scale, msg=name)


@pytest.mark.parametrize("kind", ["points", "masks"])
def test_autocast_is_as_near_to_float32_as_the_official_decoder(parts, kind):
    decoder, prompt_encoder, official = parts("vit_b")
    given_inputs = inputs(prompt_encoder, 2, 5, kind)
    exact = decode_image_by_image(official, *given_inputs, [2, 3])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        ours = decode_prompts(decoder, *given_inputs, [2, 3]).logits
        theirs = decode_image_by_image(official, *given_inputs, [2, 3])[0]
    assert ours.dtype == theirs.dtype
    assert (ours.float() - exact).abs().mean() < 1.5 * (theirs.float() - exact).abs().mean()
