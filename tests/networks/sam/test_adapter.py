import pytest
import torch
from torch import nn

from nucsam_monai.networks.sam import BlockAdapter, ImageEncoder
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.official_sam import official_encoder, run_official_block

IMAGE = torch.randn(2, 3, 28, 24, generator=torch.Generator().manual_seed(3))  # a grid of 7 x 6, windows of 5


class WindowMean(BlockAdapter):
    """Depends on the padded cells: adds each window's mean over all of its cells."""

    def windows(self, attended):
        return attended + attended.mean((1, 2), keepdim=True)


class Branch(BlockAdapter):
    def after_attention(self, attended):
        return attended * 0.5 + 0.1


class Beside(BlockAdapter):
    def beside_mlp(self, normed):
        return normed.flip(-1) * 0.3


class After(BlockAdapter):
    def after_block(self, tokens):
        return tokens + tokens.mean((1, 2), keepdim=True)


class Everything(WindowMean, Branch, Beside, After):
    pass


@pytest.fixture
def encoder(small, randomise):
    return randomise(ImageEncoder(small)).eval()


@pytest.mark.parametrize("kind", [BlockAdapter, WindowMean, Branch, Beside, After, Everything])
def test_each_hook_acts_at_its_place(encoder, kind):
    adapters = [kind() for _ in encoder.blocks]
    official = official_encoder(encoder)
    tokens = torch.randn(2, 7, 6, 24)
    for block, official_block, adapter in zip(encoder.blocks, official.blocks, adapters, strict=True):
        expected = run_official_block(official_block, tokens, adapter)
        torch.testing.assert_close(block(tokens, adapter), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", [WindowMean, Branch, Beside, After])
def test_each_hook_changes_the_embedding(encoder, kind):
    changed = encoder(IMAGE, adapters=[kind() for _ in encoder.blocks]).embedding
    assert not torch.allclose(changed, encoder(IMAGE).embedding, atol=1e-3)


def test_identity_adapters_change_nothing(encoder):
    adapters = nn.ModuleList(BlockAdapter() for _ in encoder.blocks)
    assert torch.equal(encoder(IMAGE, adapters=adapters).embedding, encoder(IMAGE).embedding)


def test_identity_windows_hook_sees_the_padded_cells_and_changes_nothing(encoder):
    shapes = []

    class Look(BlockAdapter):
        def windows(self, attended):
            shapes.append(tuple(attended.shape))
            return attended

    seen = encoder(IMAGE, adapters=[Look() for _ in encoder.blocks]).embedding
    assert shapes == [(8, 5, 5, 24), (2, 7, 6, 24)] * 2
    torch.testing.assert_close(seen, encoder(IMAGE).embedding, atol=1e-5, rtol=1e-5)


def test_low_rank_update_of_queries_and_values_equals_changed_weights(encoder):
    class LowRank(BlockAdapter):
        def __init__(self, width):
            super().__init__()
            self.q, self.v = (
                nn.Parameter(torch.randn(2, width) * 0.1),
                nn.Parameter(torch.randn(2, width) * 0.1),
            )
            self.up = torch.randn(width, 2)

        def qkv(self, tokens, qkv):
            query, value = tokens @ (self.up @ self.q).T, tokens @ (self.up @ self.v).T
            return qkv + torch.cat([query, torch.zeros_like(query), value], dim=-1)

    torch.manual_seed(0)
    adapters = [LowRank(24) for _ in encoder.blocks]
    adapted = encoder(IMAGE, adapters=adapters).embedding
    with torch.no_grad():
        for block, adapter in zip(encoder.blocks, adapters, strict=True):
            block.attn.qkv.weight[:24] += adapter.up @ adapter.q
            block.attn.qkv.weight[48:] += adapter.up @ adapter.v
    torch.testing.assert_close(adapted, encoder(IMAGE).embedding, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_adapters_learn_while_the_encoder_is_frozen(encoder, checkpointing):
    class Scale(BlockAdapter):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def after_attention(self, attended):
            return attended * self.scale

    encoder.requires_grad_(False)
    encoder.activation_checkpointing = checkpointing
    names = list(encoder.state_dict())
    adapters = nn.ModuleList(Scale() for _ in encoder.blocks)
    encoder(IMAGE, adapters=adapters).embedding.square().sum().backward()
    assert all(parameter.grad.abs() > 0 for parameter in adapters.parameters())
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert list(encoder.state_dict()) == names


def test_wrong_number_of_adapters_is_refused(encoder):
    with pytest.raises(ConfigurationError, match=r"found 3, expected one per block.*\(4\)"):
        encoder(IMAGE, adapters=[BlockAdapter()] * 3)
