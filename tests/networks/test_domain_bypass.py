import pytest
import torch

from nucsam_monai.networks.sam import SAM_VARIANTS
from nucsam_monai.networks.unsam import DomainBypass
from nucsam_monai.utils.errors import ConfigurationError


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("variant", "common", "specific", "together"),
    [("vit_b", 28.3, 3.55, 31.89), ("vit_l", 100.7, 12.6, 113.35), ("vit_h", 209.8, 26.3, 236.10)],
)
def test_released_sizes_have_the_published_parameter_counts(variant, common, specific, together):
    sizes = SAM_VARIANTS[variant]
    with torch.device("meta"):
        bypass = DomainBypass(sizes.depth, sizes.width, domains=3)
    assert count(bypass.common) / 1e6 == pytest.approx(common, abs=0.05)
    assert {count(one) for one in bypass.specific} == {count(bypass.specific[0])}
    assert count(bypass.specific[0]) / 1e6 == pytest.approx(specific, abs=0.05)
    assert (count(bypass.common) + count(bypass.specific[0])) / 1e6 == pytest.approx(together, abs=0.005)


def test_bypass_is_the_scaled_chain_of_both_embeddings():
    torch.manual_seed(0)
    bypass = DomainBypass(2, 8, 3, common_ratio=1.5, specific_ratio=0.5, scale=0.25, init="torch_default")
    tokens = torch.randn(2, 3, 4, 8)
    for domain in range(3):
        for block, adapter in enumerate(bypass.of_domain(domain)):
            hidden = tokens
            for down, gelu, up in (bypass.common[0][block], bypass.specific[domain][block]):
                hidden = up(gelu(down(hidden)))
            torch.testing.assert_close(adapter.beside_mlp(tokens), 0.25 * hidden)
    assert bypass.common[0][0][0].weight.shape == (12, 8)
    assert bypass.specific[0][0][0].weight.shape == (4, 8)


@pytest.mark.parametrize("init", ["zero_last", "torch_default"])
def test_zero_start_adds_nothing_but_learns(init):
    torch.manual_seed(0)
    bypass = DomainBypass(1, 8, 2, init=init)
    added = bypass.of_domain(1)[0].beside_mlp(torch.randn(1, 2, 2, 8))
    assert (added == 0).all().item() == (init == "zero_last")
    (added - 1).square().sum().backward()
    assert bypass.specific[1][0][-1].weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in bypass.specific[0].parameters())


def test_domains_share_one_common_embedding_or_have_copies():
    shared, copies = DomainBypass(1, 8, 3), DomainBypass(1, 8, 3, common_scope="per_domain")
    assert shared.of_domain(0)[0].common is shared.of_domain(2)[0].common
    assert copies.of_domain(0)[0].common is not copies.of_domain(2)[0].common
    assert count(copies.common) == 3 * count(shared.common)
    for copy in copies.common:  # all start alike
        assert torch.equal(copy[0][0].weight, copies.common[0][0][0].weight)


def test_common_embedding_is_handed_to_the_next_domain():
    bypass = DomainBypass(1, 8, 3, common_scope="per_domain")
    for domain, copy in enumerate(bypass.common):
        torch.nn.init.constant_(copy[0][0].weight, domain)
    bypass.inherit(1)
    assert [copy[0][0].weight.mean().item() for copy in bypass.common] == [0, 0, 2]
    bypass.inherit(0)
    assert [copy[0][0].weight.mean().item() for copy in bypass.common] == [0, 0, 2]
    parameter = bypass.common[2][0][0].weight
    bypass.inherit(2)
    assert bypass.common[2][0][0].weight is parameter  # an optimizer still knows it
    assert (parameter == 0).all()


def test_shared_embedding_is_not_changed_by_handing_on():
    bypass = DomainBypass(1, 8, 2)
    before = {name: tensor.clone() for name, tensor in bypass.state_dict().items()}
    bypass.inherit(1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in bypass.state_dict().items())


def test_unknown_values_are_refused():
    with pytest.raises(ConfigurationError, match="init 'zero': expected 'zero_last' or 'torch_default'"):
        DomainBypass(1, 8, 1, init="zero")
    with pytest.raises(ConfigurationError, match="common_scope 'all': expected 'shared' or 'per_domain'"):
        DomainBypass(1, 8, 1, common_scope="all")
