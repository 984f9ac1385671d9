"""Every block of every variant against the official code, at the real widths, heads, windows and grids."""

import dataclasses

import pytest
import torch
from torch import nn

from nucsam_monai.networks.sam import SAM_VARIANTS, BlockAdapter, ImageEncoder
from nucsam_monai.networks.unsam import BlockBypass, bottleneck
from tests.oracles.official_sam import official_encoder, run_official_block, run_official_encoder

SIZES = [(256, 256), (256, 384), (512, 512), (1024, 1024)]


class WindowConvolution(BlockAdapter):
    """A depthwise convolution inside whole windows: it mixes padded cells into real ones."""

    def __init__(self, width):
        super().__init__()
        self.mix = nn.Conv2d(width, width, kernel_size=3, padding=1, groups=width)

    def windows(self, attended):
        return attended + self.mix(attended.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


class LowRank(BlockAdapter):
    """A low-rank update of queries and values, as LoRA makes it."""

    def __init__(self, width):
        super().__init__()
        self.query, self.value = bottleneck_without_bias(width), bottleneck_without_bias(width)

    def qkv(self, tokens, qkv):
        query, key, value = qkv.chunk(3, dim=-1)
        return torch.cat([query + self.query(tokens), key, value + self.value(tokens)], dim=-1)


def bottleneck_without_bias(width):
    return nn.Sequential(nn.Linear(width, 4, bias=False), nn.Linear(4, width, bias=False))


def bypass(width):
    return BlockBypass(bottleneck(width, 0.25), bottleneck(width, 0.25), scale=0.5)


ADAPTERS = {"bypass": bypass, "windows": WindowConvolution, "lora": LowRank}


def merge_low_rank(block, adapter):
    """Write the update into the official weights."""
    width = block.attn.proj.in_features
    weight = block.attn.qkv.weight.detach().clone()
    weight[:width] += adapter.query[1].weight @ adapter.query[0].weight
    weight[2 * width :] += adapter.value[1].weight @ adapter.value[0].weight
    block.attn.qkv.weight = nn.Parameter(weight)


def two_blocks(name, randomise, heads=None):
    """Build one windowed and one global block of a variant (among four), with a narrow MLP to save time."""
    variant = SAM_VARIANTS[name]
    changes = {"depth": 4, "global_blocks": (1,), "mlp_ratio": 0.125, "stem": "patch", "fine_channels": 0}
    if heads is not None:
        changes |= {"heads": heads, "width": heads * variant.head_width}
    with torch.device("meta"):
        encoder = ImageEncoder(dataclasses.replace(variant, **changes))
    encoder.blocks = encoder.blocks[:2]
    return randomise(encoder).eval()


def assert_blocks_equal(encoder, size, kind=None):
    variant = encoder.variant
    tokens = torch.randn(1, *variant.grid(size), variant.width, generator=torch.Generator().manual_seed(1))
    official = official_blocks(encoder)
    for block, stock in zip(encoder.blocks, official, strict=True):
        torch.manual_seed(2)
        adapter = BlockAdapter() if kind is None else ADAPTERS[kind](variant.width)
        if kind == "lora":
            merge_low_rank(stock, adapter)
        with torch.no_grad():
            expected, found = run_official_block(stock, tokens, adapter), block(tokens, adapter)
        update = expected - tokens  # the residual stream itself would hide errors
        assert (found - expected).abs().max() <= 1e-5 * update.abs().max()


def official_blocks(encoder):
    with torch.device("meta"):
        whole = ImageEncoder(encoder.variant)
    for index, block in enumerate(encoder.blocks):
        whole.blocks[index] = block
    return official_encoder(whole).blocks[: len(encoder.blocks)]


@pytest.mark.parametrize("size", SIZES[:2])
@pytest.mark.parametrize("name", SAM_VARIANTS)
def test_blocks_equal_the_official_ones(randomise, name, size):
    assert_blocks_equal(two_blocks(name, randomise), size)


@pytest.mark.parametrize("name", ["vit_b", "vit_h", "vit_tiny"])  # with the head widths of all
def test_blocks_of_512_px_equal_the_official_ones(randomise, name):
    assert_blocks_equal(two_blocks(name, randomise), SIZES[2])


@pytest.mark.parametrize("name", ["vit_b", "vit_h"])  # the head widths: that of vit_l is that of vit_b
def test_one_head_of_1024_px_equals_the_official_one(randomise, name):
    assert_blocks_equal(two_blocks(name, randomise, heads=1), SIZES[3])


@pytest.mark.slow
def test_one_compact_head_of_1024_px_equals_the_official_one(randomise):
    assert_blocks_equal(two_blocks("vit_tiny", randomise, heads=1), SIZES[3])


@pytest.mark.parametrize("kind", ADAPTERS)
@pytest.mark.parametrize("name", ["vit_b", "vit_h", "vit_tiny"])
def test_adapted_blocks_equal_the_official_ones(randomise, name, kind):
    assert_blocks_equal(two_blocks(name, randomise), (256, 384), kind)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_whole_encoders_equal_the_official_ones(randomise, name, size):
    with torch.device("meta"):
        encoder = ImageEncoder(SAM_VARIANTS[name])
    encoder = randomise(encoder).eval().requires_grad_(False)
    official = official_encoder(encoder)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found, expected = encoder(image).embedding, run_official_encoder(official, image)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_gradients_equal_the_official_ones(small, randomise):
    encoder = randomise(ImageEncoder(small))
    official = official_encoder(encoder)
    image = torch.randn(2, 3, 28, 24)
    probe = torch.randn(2, 32, 7, 6)
    names = [name for name, _ in encoder.named_parameters()]
    found = torch.autograd.grad((encoder(image).embedding * probe).sum(), list(encoder.parameters()))
    stock = dict(official.named_parameters())
    expected = torch.autograd.grad(
        (run_official_encoder(official, image) * probe).sum(), [stock[name] for name in names]
    )
    for name, ours, theirs in zip(names, found, expected, strict=True):
        assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max(), name


def test_low_rank_gradients_with_frozen_tables_equal_those_without_the_cache(small, randomise):
    encoder = randomise(ImageEncoder(small))
    adapters = nn.ModuleList(LowRank(small.width) for _ in encoder.blocks)
    image = torch.randn(1, 3, 28, 24)

    def gradients():
        return torch.autograd.grad(
            encoder(image, adapters=adapters).embedding.square().sum(), list(adapters.parameters())
        )

    expected = gradients()
    encoder.requires_grad_(False)
    for _ in range(2):  # filling the cache, then using it
        for found, reference in zip(gradients(), expected, strict=True):
            torch.testing.assert_close(found, reference)
