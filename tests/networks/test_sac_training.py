import copy

import pytest
import torch

from nucsam_monai.losses import SACLoss
from nucsam_monai.networks import SAC
from nucsam_monai.utils.errors import ConfigurationError

KINDS = ["none", "lora", "msa", "head", "full", "samus"]
POINTS = {"n_points": 2, "tau": 0.5}


def disc(row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).float()


@pytest.fixture
def example():
    """Two noisy images, one bright disc each, and their masks."""
    masks = torch.stack([disc(22, 24, 13), disc(40, 36, 15)])[:, None]
    noise = 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return 2 * masks - 1 + noise, masks


def train(network, example, steps=1, loss=None, **inputs):
    """Take steps with Adam and return the losses."""
    loss = loss or SACLoss()
    optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=1e-3)
    network.train()
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(network(example[0], **inputs), example[1])
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


def changed(network, before):
    """Names of the tensors that differ from an earlier state dict, bit by bit."""
    return {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, before[name])}


def with_gradient(network):
    return {name for name, parameter in network.named_parameters() if parameter.grad is not None}


def names(network, *prefixes):
    return {name for name, _ in network.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize("kind", KINDS)
def test_one_step_changes_trained_parts_alone(micro_sac, example, kind):
    network = micro_sac(adapter=kind, generator=POINTS)
    adapters = network.samus or network.adapters
    if adapters is not None:  # behind a zero no gradient arrives
        for parameter in adapters.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    before = copy.deepcopy(network.state_dict())
    train(network, example)
    moved = changed(network, before)
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    buffers = {name for name in before if name not in dict(network.named_parameters())}
    assert moved <= trained | {name for name in buffers if name.startswith(("generator.", "samus."))}
    used = {
        "none": ["sam.image_encoder.neck."],
        "lora": ["adapters."],
        "msa": ["adapters."],
        "head": [],
        "samus": ["samus."],
        "full": ["sam.image_encoder.neck.", "sam.image_encoder.blocks.3.mlp.", "sam.image_encoder.pos_embed"],
    }[kind]
    used += [
        "generator.unet.",
        "sam.mask_decoder.output_upscaling.",
        "sam.mask_decoder.transformer.layers.0.mlp.",
    ]
    assert names(network, *used) <= moved


def test_vanilla_sam_stays_as_it_is_while_the_generator_learns(micro_sac, example):
    network = micro_sac(adapter="none", sam={"finetune": False}, generator=POINTS)
    before = copy.deepcopy(network.state_dict())
    train(network, example)
    assert {name.split(".")[0] for name in changed(network, before)} == {"generator"}


def test_the_two_parts_share_no_gradient(micro_sac, example):
    network = micro_sac(adapter="full", generator=POINTS).train()
    network(example[0]).mask_logits.square().mean().backward()
    assert not any(name.startswith("generator.") for name in with_gradient(network))
    network.zero_grad()
    network(example[0]).generator_logits.square().mean().backward()
    assert with_gradient(network) == names(network, "generator.")


def test_joint_training_is_the_default(micro_sac):
    network = micro_sac()
    for epoch in (0, 40):
        network.begin_epoch(epoch)
        assert network.stage == "joint"


def test_pretrained_generator_freezes_with_its_statistics(micro_sac, example):
    network = micro_sac(generator={**POINTS, "training": "pretrain", "pretrain_epochs": 3})
    network.begin_epoch(2)
    output = network.train()(example[0])
    assert output.mask_logits is None
    train(network, example)
    assert with_gradient(network) == names(network, "generator.")
    network.begin_epoch(3)
    network.zero_grad()
    before = copy.deepcopy(network.state_dict())
    output = network.train()(example[0])
    assert output.generator_logits is None
    assert (output.prompts.labels >= 0).any()
    train(network, example)
    assert not any(name.startswith("generator.") for name in changed(network, before))
    assert all(p.requires_grad for p in network.generator.parameters())  # so that its weights are saved
    assert network.eval()(example[0]).shape == (2, 1, 64, 64)


def test_warm_up_takes_its_points_from_the_ground_truth(micro_sac, example):
    network = micro_sac(generator={"n_points": 1, "training": "warmup", "warmup_epochs": 1}).train()
    output = network(example[0], truth=example[1])
    assert output.prompts.labels.tolist() == [[1, 0]] * 2
    assert output.prompts.coordinates[:, 0].tolist() == [[24.0, 22.0], [36.0, 40.0]]
    assert output.generator_logits.requires_grad
    with pytest.raises(ConfigurationError, match="'warmup': found a batch without the ground truth"):
        network(example[0])
    network.begin_epoch(1)
    torch.manual_seed(0)
    afterwards = network(example[0], truth=example[1]).prompts
    torch.manual_seed(0)
    assert torch.equal(afterwards.coordinates, network(example[0]).prompts.coordinates)
    network.begin_epoch(0)
    assert network.eval()(example[0]).shape == (2, 1, 64, 64)  # evaluation never looks at the truth


@pytest.mark.parametrize("training", ["pretrain", "warmup"])
def test_without_generator_there_is_one_stage(micro_sac, example, training):
    network = micro_sac(generator={"n_points": 0, "training": training})
    assert network.train()(example[0]).mask_logits is not None


def test_activation_checkpointing_changes_no_gradient(micro_sac, example):
    gradients = []
    for checkpointing in (False, True):
        network = micro_sac(
            sam={"activation_checkpointing": checkpointing}, generator={"n_points": 0}
        ).train()
        network(example[0]).mask_logits.square().mean().backward()
        gradients.append(network.adapters[0].query[1].weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


def test_images_without_nuclei_can_be_trained(micro_sac, images):
    network = micro_sac(generator=POINTS)
    values = train(network, (images, torch.zeros(2, 1, 64, 64)), steps=2)
    assert torch.tensor(values).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.mark.usefixtures("thin_generator")
def test_compact_sam_learns(example):
    torch.manual_seed(0)
    network = SAC("vit_tiny", 64, adapter="full")
    values = train(network, example, steps=8)
    assert values[-1] < 0.6 * values[0]
