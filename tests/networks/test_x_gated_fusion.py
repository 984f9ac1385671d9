import math

import pytest
import torch

from nucsam_monai.networks.eunet3p import ChannelGate, SAMGuidance, XGatedFusionBlock, XGFBOptions
from nucsam_monai.utils.errors import ConfigurationError

GENERATOR = torch.Generator().manual_seed(0)
FEATURES, GUIDE = torch.randn(2, 8, 3, 4, generator=GENERATOR), torch.randn(2, 4, 3, 4, generator=GENERATOR)


def build(**options):
    torch.manual_seed(0)
    block = XGatedFusionBlock(8, 4, XGFBOptions(**options))
    torch.nn.init.normal_(block.attention.in_proj_bias)
    return block


def slow_attention(attention, query, context):
    """One head, position by position, from the definition."""
    w_q, w_k, w_v = attention.in_proj_weight.chunk(3)
    b_q, b_k, b_v = attention.in_proj_bias.chunk(3)
    rows = []
    for q in query @ w_q.T + b_q:
        scores = torch.stack([q @ k / math.sqrt(len(k)) for k in context @ w_k.T + b_k])
        rows.append(sum(p * v for p, v in zip(scores.softmax(0), context @ w_v.T + b_v, strict=True)))
    return torch.stack(rows) @ attention.out_proj.weight.T + attention.out_proj.bias


def slow_gate(gate, features, guide):
    mean = torch.cat([features, guide]).mean(dim=(1, 2))
    _, first, activation, second, _ = gate.weights
    hidden = first.weight[:, :, 0, 0] @ mean + first.bias
    if isinstance(activation, torch.nn.GLU):
        half = len(hidden) // 2
        hidden = hidden[:half] * torch.sigmoid(hidden[half:])
    else:
        hidden = hidden.clamp(min=0)
    return torch.sigmoid(second.weight[:, :, 0, 0] @ hidden + second.bias)[:, None, None] * features


@pytest.mark.parametrize("gate", ["glu", "released"])
@pytest.mark.parametrize("kv", ["gated", "ungated", "sam"])
@pytest.mark.parametrize("residual", [False, True])
@torch.no_grad()
def test_block_equals_its_definition(gate, kv, residual):
    block = build(gate=gate, kv=kv, residual=residual).eval()
    found = block(FEATURES, GUIDE)
    for image in range(2):
        gated = slow_gate(block.gate, FEATURES[image], GUIDE[image])
        query = gated.reshape(8, 12).T
        context = {"gated": query, "ungated": FEATURES[image].reshape(8, 12).T}.get(kv)
        if kv == "sam":
            context = block.guide_tokens(GUIDE[image].reshape(4, 12).T)
        expected = slow_attention(block.attention, query, context).T.reshape(8, 3, 4)
        expected = expected + gated if residual else expected
        torch.testing.assert_close(found[image], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "parameters"), [("glu", 1_574_912), ("released", 62_000)])
def test_gates_have_the_sizes_of_paper_and_released_code(kind, parameters):
    with torch.device("meta"):
        gate = ChannelGate(512, 256, kind)
    assert sum(parameter.numel() for parameter in gate.parameters()) == parameters


@pytest.mark.parametrize("stride", [1, 2, 4, 8, 16])
def test_guidance_meets_every_level_whatever_the_embedding_s_resolution(stride):
    guidance = SAMGuidance([4, 4, 4, 4, 8], 4, stride, advanced=True)
    embedding = torch.randn(1, 4, 64 // stride, 32 // stride)
    for level, width in enumerate([4, 4, 4, 4, 8]):
        features = torch.randn(1, width, 64 // 2**level, 32 // 2**level)
        changed = guidance(level, features, embedding)
        assert changed.shape == features.shape
        assert not torch.equal(changed, features)


def test_levels_meet_sam_as_in_the_released_code():
    with torch.device("meta"):
        guidance = SAMGuidance([32, 64, 128, 256, 512], 256, 4, advanced=True)
        embedding = torch.empty(1, 256, 64, 64)
        shapes = [tuple(to_level(embedding).shape[1:]) for to_level in guidance.to_level]
        assert guidance.to_coarsest(embedding).shape[1:] == (256, 16, 16)
    assert shapes == [(16, 256, 256), (32, 128, 128), (64, 64, 64), (128, 32, 32)]
    assert [guidance.to_level[level].kernel_size for level in (0, 1)] == [(8, 8), (4, 4)]


def test_only_the_coarsest_level_is_guided_by_default():
    guidance = SAMGuidance([4, 4, 8], 4, 2, fusion="concat")
    features = torch.randn(1, 4, 8, 8)
    assert guidance(1, features, torch.randn(1, 4, 8, 8)) is features


@pytest.mark.parametrize("stride", [3, 32])
def test_embedding_that_fits_no_level_is_refused(stride):
    with pytest.raises(ConfigurationError, match=f"one pixel per {stride} px"):
        SAMGuidance([4, 4, 4, 4, 8], 4, stride)
