import pytest
import torch
from torch.nn import functional as F

from nucsam_monai.networks.cfrsam import refinement
from nucsam_monai.networks.cfrsam.refinement import (
    BGMROptions,
    BoundaryRefinement,
    ModulatedDeformConv,
    PixelRefinement,
    SpatialAttention,
    convolve_joined,
    fixed_statistics,
    refine_in_chunks,
)
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import boundary_refinement as oracle

OWNERS = torch.tensor([0, 0, 1])


def count(*modules):
    return sum(parameter.numel() for module in modules for parameter in module.parameters())


def randomised(module):
    """Give layers and statistics values that leave no term out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for tensor in module.state_dict().values():
            if tensor.is_floating_point():
                tensor.normal_(0, 0.3)
        for part in module.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.running_var.uniform_(0.5, 2.0)
    return module


def build(pixels_per_logit=4, **options):
    network = BoundaryRefinement(32, pixels_per_logit, BGMROptions(**options))
    return randomised(network).eval()


def inputs(side=32, pixels_per_logit=4):
    generator = torch.Generator().manual_seed(1)
    logits = side // pixels_per_logit
    embedding = torch.randn(2, 32, logits // 4, logits // 4, generator=generator)
    image = torch.randn(2, 3, side, side, generator=generator)
    return embedding, image, torch.randn(3, 4, logits, logits, generator=generator)


def refine(network, embedding, image, upscaled):
    return network(network.guides(embedding, image), upscaled, OWNERS)


def test_it_and_its_parts_have_the_published_numbers_of_parameters():
    with torch.device("meta"):
        network = BoundaryRefinement(256)
    assert count(network) == 251_086
    assert count(network.semantic) == 166_080
    assert count(network.join, network.upscale) == 37_056
    assert count(network.evidence.stem) == 928
    assert count(network.evidence) - 928 == 4_384
    assert count(network.fusion) == 20_721
    assert count(network.boundary) == 593
    assert count(network.reduce, network.deformable, network.expand) == 7_387
    assert count(network.mask) == 13_937


def test_pixel_network_is_of_equal_size():
    with torch.device("meta"):
        assert count(PixelRefinement(256)) == pytest.approx(251_086, rel=0.002)


@pytest.mark.parametrize("attention", ["paper", "released"])
@pytest.mark.parametrize("plain_side", [1, 3])
def test_refinement_equals_its_equations(attention, plain_side):
    network = build(attention=attention, plain_side=plain_side)
    embedding, image, upscaled = inputs()
    found = refine(network, embedding, image, upscaled)
    logits, boundary = oracle.refine(network, embedding, image, upscaled, OWNERS)
    assert found.logits.shape == found.boundary.shape == (3, 1, 32, 32)
    assert found.reach_px.min() > 0  # taps are moved, so the comparison covers it
    torch.testing.assert_close(found.logits, logits, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found.boundary, boundary, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pixels_per_logit", [1, 2, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"mcbe": False}, {"bgff": False}, {"boundary_sup": False}, {"mcbe": False, "bgff": False}],
)
def test_every_part_can_be_left_out(pixels_per_logit, options):
    network = build(pixels_per_logit, **options).train()
    found = refine(network, *inputs(16, pixels_per_logit))
    assert found.logits.shape == (3, 1, 16, 16)
    assert (found.boundary is None) == ("boundary_sup" in options)
    sum(part.sum() for part in found[:2] if part is not None).backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_without_scales_the_evidence_is_the_convolved_image():
    network, (_, image, _) = build(mcbe=False).evidence, inputs()
    assert torch.equal(network(image), network.stem(image))


def test_shared_maps_are_convolved_like_concatenated_ones():
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(5, 4, 3, padding=1)
    shared, own = torch.randn(2, 3, 6, 6), torch.randn(3, 2, 6, 6)
    expected = conv(torch.cat([shared[OWNERS], own], dim=1))
    torch.testing.assert_close(convolve_joined(conv, shared, own, OWNERS), expected)


def test_deformable_convolution_starts_as_half_a_plain_one():
    torch.manual_seed(0)
    layer, maps = ModulatedDeformConv(3, 2), torch.randn(2, 3, 7, 7)
    found, reach = layer(layer.taps(maps), layer.predict(maps))
    weight = layer.taps.weight.view(3, 3, 2, 3).permute(2, 3, 0, 1)
    torch.testing.assert_close(found, 0.5 * F.conv2d(maps, weight, padding=1), rtol=1e-4, atol=1e-5)
    assert reach.tolist() == [0.0, 0.0]


@pytest.mark.parametrize("size", [(9, 9), (7, 12)])
def test_deformable_convolution_equals_torchvision_s_with_its_gradients(size):
    torch.manual_seed(0)
    layer = ModulatedDeformConv(3, 2)
    torch.nn.init.normal_(layer.predict.weight, std=0.5)  # moves across the border as well
    maps = torch.randn(2, 3, *size, requires_grad=True)
    found, reach = layer(layer.taps(maps), layer.predict(maps))
    expected = oracle.deform(layer, maps)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    largest = layer.predict(maps)[:, :18].abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(reach, largest.detach())
    direction = torch.randn_like(found)
    inputs = (maps, *layer.parameters())
    gradients = (torch.autograd.grad(result, inputs, direction) for result in (found, expected))
    torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-3)


def test_spatial_attention_is_bounded_in_the_paper_and_not_in_the_released_code():
    maps = torch.ones(1, 2, 9, 9)
    for order, largest in (("paper", 2.0), ("released", 50.0)):
        attention = SpatialAttention(order)
        torch.nn.init.constant_(attention.conv.weight, 10.0)
        assert (attention(maps).max() > largest) == (order == "released")


def test_chunks_change_nothing(monkeypatch):
    network = build()
    embedding, image, upscaled = inputs()
    guides = network.guides(embedding, image)
    together = network(guides, upscaled, OWNERS)
    calls = []
    network.register_forward_pre_hook(lambda _, args: calls.append(len(args[1])))
    for found, expected in zip(refine_in_chunks(network, guides, upscaled, OWNERS), together, strict=True):
        torch.testing.assert_close(found, expected)
    assert calls == [1, 1, 1]
    monkeypatch.setattr(refinement, "prompts_per_chunk", lambda evidence, size: 2)
    refine_in_chunks(network, guides, upscaled, OWNERS)
    refine_in_chunks(network.train(), guides, upscaled, OWNERS)
    assert calls[3:] == [2, 1, 3]


def test_statistics_can_be_fixed_for_a_while():
    network = build().train()
    norm = network.join.norm
    before = norm.running_mean.clone()
    with fixed_statistics(network):
        refine(network, *inputs())
        assert network.training
        assert not norm.training
    assert torch.equal(norm.running_mean, before)
    refine(network, *inputs())
    assert not torch.equal(norm.running_mean, before)


def test_impossible_sizes_are_refused():
    with pytest.raises(ConfigurationError, match="embedding of 24 channels, expected a multiple of 16"):
        BoundaryRefinement(24)
    with pytest.raises(ConfigurationError, match="BGMR: 8 px per logit, expected 1, 2 or 4"):
        BoundaryRefinement(32, 8)
