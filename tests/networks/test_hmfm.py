import pytest
import torch

from nucsam_monai.networks.cfrsam.network import HMFM, HMFMOptions


@pytest.fixture
def levels():
    return list(torch.randn(4, 2, 6, 5, 5, generator=torch.Generator().manual_seed(0)))


def build(**options):
    torch.manual_seed(0)
    return HMFM(6, HMFMOptions(**options)).eval()


def test_it_has_the_published_number_of_parameters():
    with torch.device("meta"):
        fusion = HMFM(256, HMFMOptions())
    assert sum(parameter.numel() for parameter in fusion.parameters()) == 264_192


@pytest.mark.parametrize(("reduce", "factor"), [("sum", 1.0), ("mean", 0.25)])
def test_modulated_levels_equal_their_equations(levels, reduce, factor):
    fusion = build(reduce=reduce)
    for parameter in fusion.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    expected = torch.zeros(2, 6, 5, 5)
    for gate, level in zip(fusion.gates, levels, strict=True):
        conv, norm = gate[0], gate[1]
        mixed = torch.einsum("oi,bihw->bohw", conv.weight[..., 0, 0], level)
        normed = mixed / (1 + norm.eps) ** 0.5 * norm.weight[:, None, None] + norm.bias[:, None, None]
        weights = torch.sigmoid(normed.clamp_min(0).mean(dim=(2, 3)))
        expected += factor * (weights[:, :, None, None] * level + level)
    torch.testing.assert_close(fusion(levels), expected)


def test_plain_sum_and_average(levels):
    stacked = torch.stack(levels)
    torch.testing.assert_close(build(fusion="add")(levels), stacked.sum(dim=0))
    torch.testing.assert_close(build(fusion="average")(levels), stacked.mean(dim=0))
    assert not list(build(fusion="average").parameters())


def test_concatenation_is_projected(levels):
    fusion = build(fusion="concat")
    weight = fusion.project.weight[..., 0, 0].split(6, dim=1)
    expected = sum(
        torch.einsum("oi,bihw->bohw", part, level) for part, level in zip(weight, levels, strict=True)
    )
    torch.testing.assert_close(fusion(levels), expected + fusion.project.bias[:, None, None])
