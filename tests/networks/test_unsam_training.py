import copy

import pytest
import torch

from nucsam_monai.losses import UNSAMLoss
from tests.oracles.unsam_losses import dice_coefficient


def disc(row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).float()


@pytest.fixture
def example():
    """Two noisy images, one bright disc each, and their masks."""
    masks = torch.stack([disc(22, 24, 13), disc(40, 36, 15)])[:, None]
    noise = 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return 2 * masks - 1 + noise, masks


def train(network, example, domain, steps, optimizer):
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        UNSAMLoss()(network(example[0], domain=domain), example[1]).backward()
        optimizer.step()


def adam(network, **options):
    return torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=1e-3, **options)


def changed(network, before):
    """Names of the tensors that differ from an earlier state dict, bit by bit."""
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def names(network, *prefixes):
    return {name for name, _ in network.named_parameters() if name.startswith(prefixes)}


def of_domain(network, k):
    return names(
        network, f"bypass.specific.{k}.", f"decoder.queries.{k}", f"decoder.output_hypernetworks_mlps.{k}."
    )


@pytest.mark.parametrize("variant", ["pyramid", "released"])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_only_what_the_active_domain_uses_learns(micro_unsam, example, weight_decay, variant):
    # The attention of a single query is constant, and an empty hint is blind to its first convolution.
    network = micro_unsam(
        encoder={"init": "torch_default"},
        spgen={"variant": variant, "tau": 0.0},
        decoder={"queries_per_domain": 2},
    )
    images, masks = example
    example = images, torch.cat([masks, masks.flip(0)], dim=1)
    optimizer = adam(network, weight_decay=weight_decay)
    everybody = names(
        network, "bypass.common.", "spgen.", "decoder.transformer.", "decoder.output_upscaling."
    )
    everybody |= names(network, "prompt_encoder.mask_downscaling.")
    for k, domain in enumerate(network.domains):  # the optimizer has momentum of the domains before
        before = copy.deepcopy(network.state_dict())
        train(network, example, domain, 2, optimizer)
        moved = changed(network, before)
        assert moved <= everybody | of_domain(network, k)
        # A bias of the keys cancels in the softmax, so that its gradient is rounding at most.
        assert (everybody | of_domain(network, k)) - moved <= {
            n for n in everybody if n.endswith("k_proj.bias")
        }
        gradients = {name for name, p in network.named_parameters() if p.grad is not None}
        assert gradients == everybody | of_domain(network, k)


def test_frozen_parameters_need_no_gradient(micro_unsam):
    network = micro_unsam()
    trained = {name for name, p in network.named_parameters() if p.requires_grad}
    assert trained == names(network, "bypass.", "spgen.", "decoder.", "prompt_encoder.mask_downscaling.")
    added = micro_unsam(spgen={"inject": "add"})
    assert not any(p.requires_grad for p in added.prompt_encoder.parameters())


def test_encoder_can_be_trained_as_well(micro_unsam, example):
    network = micro_unsam(encoder={"trainable": "all"})
    before = copy.deepcopy(network.state_dict())
    train(network, example, "a", 2, adam(network))
    assert all(p.requires_grad for p in network.parameters())
    moved = changed(network, before)
    for part in ("patch_embed.", "pos_embed", "blocks.0.attn.qkv.weight", "blocks.3.mlp.", "neck."):
        assert names(network, f"image_encoder.{part}") <= moved


def test_copies_of_the_common_embedding_learn_alone(micro_unsam, example):
    network = micro_unsam(encoder={"common_scope": "per_domain"})
    before = copy.deepcopy(network.state_dict())
    train(network, example, "b", 2, adam(network, weight_decay=0.1))
    moved = changed(network, before)
    assert names(network, "bypass.common.1.") <= moved
    assert not moved & names(network, "bypass.common.0.", "bypass.common.2.")


@pytest.mark.parametrize(
    ("spgen", "reached"),
    [
        ({"inject": "mask_prompt"}, False),
        ({"inject": "mask_prompt", "detach": False}, False),
        ({"inject": "add", "tau": 0.0}, False),
        ({"inject": "add", "tau": 0.0, "detach": False}, True),
    ],
)
def test_mask_loss_reaches_spgen_only_through_added_logits(micro_unsam, example, spgen, reached):
    network = micro_unsam(spgen=spgen).train()
    UNSAMLoss(spgen_weight=0.0).mask(network(example[0]).mask_logits, example[1]).backward()
    gradients = [p.grad for p in network.spgen.parameters()]
    assert all((gradient is not None) == reached for gradient in gradients)


def test_hint_loss_reaches_spgen_and_bypass_but_not_the_decoder(micro_unsam, example):
    network = micro_unsam(encoder={"init": "torch_default"}).train()
    network(example[0]).hint_logits.square().mean().backward()
    assert all(p.grad is not None for p in network.spgen.parameters())
    assert all(p.grad is not None for p in network.bypass.specific[0].parameters())
    assert all(p.grad is None for p in network.decoder.parameters())


def worst_dice(network, example):
    logits = network.eval()(example[0], domain="b")
    return min(
        dice_coefficient(predicted > 0, truth > 0)
        for predicted, truth in zip(logits, example[1], strict=True)
    )


def test_two_images_can_be_learned_by_heart(micro_unsam, example):
    network = micro_unsam()
    optimizer = adam(network)
    assert worst_dice(network, example) < 0.8
    for _ in range(20):
        train(network, example, "b", 10, optimizer)
        if worst_dice(network, example) > 0.95:
            return
    pytest.fail(f"Dice {worst_dice(network, example):.3f} after 200 steps")
