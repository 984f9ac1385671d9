import copy
import dataclasses

import pytest
import torch

from nucsam_monai.losses import CFRSAMLoss, CFRSAMTarget
from nucsam_monai.networks import CFRSAM, NucleusPrompts
from nucsam_monai.networks.sam import SAM_VARIANTS

THIN = dataclasses.replace(
    SAM_VARIANTS["vit_tiny"],
    name="thin",
    width=64,
    heads=2,
    embed_channels=32,
    decoder_heads=4,
    decoder_mlp_width=64,
)


@pytest.fixture(autouse=True)
def thin(monkeypatch):
    """The compact SAM with a fourth of its channels in the decoder and the refinement."""
    monkeypatch.setitem(SAM_VARIANTS, THIN.name, THIN)


def example():
    """Two noisy images of a bright disc each, a point in each disc, and the discs' masks."""
    rows, columns = torch.meshgrid(torch.arange(64.0), torch.arange(64.0), indexing="ij")
    centres = torch.tensor([[18.0, 20.0], [44.0, 36.0]])
    masks = torch.stack([(columns - x) ** 2 + (rows - y) ** 2 <= 11**2 for x, y in centres])
    noise = 0.1 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    counts = torch.tensor([1, 1])
    prompts = NucleusPrompts(centres[:, None], torch.ones(2, 1, dtype=torch.long), counts)
    return 2 * masks[:, None].float() - 1 + noise, prompts, CFRSAMTarget(masks, masks, counts)


def train(network, steps):
    images, prompts, target = example()
    loss = CFRSAMLoss()
    optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    network.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(network(images, prompts), target).backward()
        optimizer.step()
        schedule.step()


def test_steps_change_trained_parts_alone():
    torch.manual_seed(0)
    network = CFRSAM("thin", 64)
    before = copy.deepcopy(network.state_dict())
    train(network, steps=2)  # layers before those that start at zero move in the second one
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    frozen = ("sam.image_encoder.", "sam.prompt_encoder.")
    assert not [name for name in moved if name.startswith(frozen)]
    parts = [
        "adapters.0.attention.up.",
        "adapters.3.block.up.",
        "hmfm.gates.",
        "bgmr.semantic.",
        "bgmr.mask.",
    ]
    parts += [
        "bgmr.fusion.deformable.predict.",
        "bgmr.evidence.edges.",
        "sam.mask_decoder.transformer.layers.1.mlp.",
    ]
    for part in parts:
        assert [name for name in moved if name.startswith(part)], part


@pytest.mark.parametrize(
    ("start", "steps"), [("scratch", 30), pytest.param("coarse", 100, marks=pytest.mark.slow)]
)
def test_two_images_are_learned_by_heart(start, steps):
    torch.manual_seed(0)
    network = CFRSAM("thin", 64, adapter="full", bgmr={"start": start})
    train(network, steps)
    images, prompts, target = example()
    with torch.no_grad():
        output = network(images, prompts)  # with the statistics of the batch, as in the steps before
    found = output.refined[:, 0] > 0
    shared = (found & target.masks).sum()
    assert 2 * shared / (found.sum() + target.masks.sum()) > 0.95
