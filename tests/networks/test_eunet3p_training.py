import copy

import pytest
import torch

from nucsam_monai.losses import EUNet3PLoss, EUNet3PMaskLoss
from nucsam_monai.networks import EUNet3P
from nucsam_monai.networks.sam import SAM, EmbeddingCache, load_trained, save_trained
from nucsam_monai.utils.errors import CheckpointError

SMALL = {"filters": [8, 8, 8, 16, 16]}


@pytest.fixture
def build(micro):
    def build(*, unet=None, **options):
        torch.manual_seed(0)
        return EUNet3P(micro.name, unet={**SMALL, **(unet or {})}, **options)

    return build


def disc(row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return ((rows - row) ** 2 + (columns - column) ** 2 <= radius**2).float()


@pytest.fixture
def example():
    """Two noisy images, two bright discs each, and their masks."""
    masks = torch.stack([disc(20, 22, 11) + disc(48, 50, 8), disc(40, 20, 12) + disc(14, 50, 7)])[:, None]
    noise = 0.3 * torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return 2 * masks - 1 + noise, masks


def train(network, example, steps, loss=None, lr=1e-3):
    """Take steps with Adam and return the losses."""
    loss = loss or EUNet3PLoss()
    optimizer = torch.optim.Adam((p for p in network.parameters() if p.requires_grad), lr=lr)
    network.train()
    values = []
    for _ in range(steps):
        optimizer.zero_grad()
        value = loss(network(example[0]), example[1])
        value.backward()
        optimizer.step()
        values.append(value.item())
    return values


@torch.no_grad()
def dice(network, example):
    found = (network.eval()(example[0]) > 0).float()
    return float(2 * (found * example[1]).sum() / (found.sum() + example[1].sum()))


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "generalized_dice_focal"),
        ({"advanced": True, "xgfb": {"gate": "released", "kv": "ungated"}}, "sigmoid_focal_dice"),
        ({"fusion": "none", "unet": {"deep_supervision": True}}, "generalized_dice_focal"),
    ],
)
def test_two_images_are_learnt_by_heart(build, example, options, kind):
    network = build(**options, embedding_cache=EmbeddingCache(None, max_memory_bytes=10**8))
    loss = EUNet3PLoss(EUNet3PMaskLoss(kind))
    for _ in range(8):  # 160 steps at the most
        train(network, example, steps=20, loss=loss, lr=3e-3)
        if dice(network, example) > 0.95:
            return
    pytest.fail(f"Dice is {dice(network, example):.3f}, expected more than 0.95")


def test_cached_features_change_no_loss_and_sam_runs_once_per_image(build, example):
    losses, seen = [], []
    for cache in (None, EmbeddingCache(None, max_memory_bytes=10**8, storage="fp32")):
        network = build(embedding_cache=cache)
        seen.append([])
        network.image_encoder.patch_embed.register_forward_pre_hook(
            lambda _, inputs, calls=seen[-1]: calls.append(len(inputs[0]))
        )
        torch.manual_seed(1)
        losses.append(train(network, example, steps=3))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)  # memory layouts differ, and so does rounding
    assert seen == [[2, 2, 2], [2]]
    assert (cache.hits, cache.misses) == (4, 2)


def test_features_handed_in_change_no_loss_and_sam_does_not_run(build, example):
    network = build(unet={"dropout": 0.0}).train()
    features = network.sam_features(example[0])
    assert not features.requires_grad
    expected = network(example[0]).logits
    network.image_encoder.register_forward_pre_hook(lambda *_: pytest.fail("SAM ran"))
    torch.testing.assert_close(network(example[0], features=features).logits, expected)


def test_one_step_changes_trained_parts_alone(build, example):
    network = build(advanced=True)
    for gate in network.guidance.gates:  # behind a ReLU that is silent no gradient arrives
        torch.nn.init.constant_(gate.weights[1].bias, 3.0)
    before = copy.deepcopy(network.state_dict())
    train(network, example, steps=1)
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.split(".")[0] for name in moved} == {"unet", "guidance"}
    weights = {name for name in before if name.startswith(("unet", "guidance")) and name.endswith("weight")}
    assert weights <= moved
    assert not network.image_encoder.training
    assert network.unet.training


def test_images_without_nuclei_can_be_trained(build, images):
    network = build()
    values = train(network, (images, torch.zeros(2, 1, 64, 64)), steps=2)
    assert torch.tensor(values).isfinite().all()
    assert all(parameter.isfinite().all() for parameter in network.parameters())


@pytest.fixture
def official(micro, tmp_path):
    """A SAM of the micro variant and the path of its checkpoint in the official layout."""
    torch.manual_seed(7)
    sam = SAM(micro, (64, 64))
    path = tmp_path / "sam.pth"
    torch.save(sam.state_dict(), path)
    return sam, str(path)


@torch.no_grad()
def test_features_are_those_of_the_checkpoint(build, official, images):
    sam, path = official
    network = build(sam_checkpoint=path, sam={"input_scale": 1}).eval()
    torch.testing.assert_close(network.sam_features(images), sam.image_encoder(images).embedding)


@pytest.mark.parametrize("with_checkpoint", [False, True])
def test_trained_weights_survive_a_round_trip_without_sam_s(
    build, official, example, tmp_path, with_checkpoint
):
    options = {"sam_checkpoint": official[1] if with_checkpoint else None, "advanced": True}
    network = build(**options)
    train(network, example, steps=2)
    file = tmp_path / "eunet3p.safetensors"
    save_trained(file, network, network.header)
    restored = build(**options)
    with torch.no_grad():
        assert not torch.allclose(restored.eval()(example[0]), network.eval()(example[0]))
        load_trained(file, restored, restored.header)
        assert torch.equal(restored(example[0]), network(example[0]))
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert file.stat().st_size < 4 * trained + 100_000


@pytest.mark.parametrize(
    "other",
    [{"xgfb": {"kv": "ungated"}}, {"unet": {"pool": "max"}}, {"sam": {"input_scale": 2}}, {"fusion": "none"}],
)
def test_weights_of_other_options_are_refused(build, tmp_path, other):
    network = build()
    save_trained(tmp_path / "eunet3p.safetensors", network, network.header)
    changed = build(**other)
    with pytest.raises(CheckpointError, match=r"its (options|sam_variant) is .* but this network's is"):
        load_trained(tmp_path / "eunet3p.safetensors", changed, changed.header)


def test_dropout_is_not_part_of_the_weights(build):
    assert build(unet={"dropout": 0.0}).header == build().header
