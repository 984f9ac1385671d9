"""Every system builds, learns, and makes nuclei of what it gives."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nucsam_monai import systems
from nucsam_monai.inferers import SemanticInferer, TileInferer
from nucsam_monai.losses import MaskLoss
from nucsam_monai.networks import Baseline
from nucsam_monai.networks.baselines import Size
from nucsam_monai.networks.sam import save_trained, start_trunk, with_settings
from nucsam_monai.systems import SYSTEMS
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from nucsam_monai.utils.prediction import NucleiPrediction

SIDES = {"swin_unetr": 64, "pretrained_unet": 64}
"""Sides of the smallest images of those that do not learn with 32 px; encoders by name do not either."""
ENCODERS = {"segformer-*": "segformer-mit_b0", "cellvit-*": "cellvit-vit_b"}
"""Of the systems on an encoder by name those that are tested with another one than timm's for tests."""


def named(key: str) -> str:
    return ENCODERS.get(key, key.replace("*", "tu-test_resnet"))


def side_of(name: str, size: str = "small") -> int:
    return SIDES.get(name, 64 if "-" in name or size == "compact" else 32)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        *((named(key), "small") for key in SYSTEMS if "small" in SYSTEMS[key].sizes),
        ("hovernet", "compact"),
        ("cppnet", "compact"),
    ],
)
def test_a_step_lowers_the_loss_and_the_output_becomes_nuclei(name: str, size: Size) -> None:
    torch.manual_seed(0)
    side = side_of(name, size)
    network = systems.build_network(name, size).train()
    for module in network.modules():
        if "Drop" in type(module).__name__:
            module.eval()  # what it drops is another loss at each step
    batch = [item_of(side, shift) for shift in (0, 3)]
    for step in systems.own_targets(name, systems.default_rule(name)):
        batch = [step(item) for item in batch]
    images, target = (torch.stack([item[key] for item in batch]) for key in ("image", "label"))
    loss_function = systems.own_loss(name, MaskLoss())
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-4)
    losses = []
    for _ in range(4):
        loss = loss_function(network(images), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(one.grad is not None for one in network.parameters() if one.requires_grad)
    assert np.isfinite(losses).all()
    assert min(losses[1:]) < losses[0]
    nuclei = nuclei_of(name, side, network.eval(), torch.randn(1, 3, side + 6, side + 1))
    assert nuclei.instances.shape == nuclei.foreground.shape == (side + 6, side + 1)


def item_of(side: int, shift: int) -> dict[str, torch.Tensor]:
    """Return an image with two touching nuclei that are brighter than its background."""
    instances = torch.zeros(1, side, side, dtype=torch.int32)
    instances[0, 6 : 16 + shift, 4:14], instances[0, 8:20, 14:24] = 4, 9
    label = (instances > 0).float()
    return {"image": label + 0.1 * torch.randn(3, side, side), "instances": instances, "label": label}


def nuclei_of(name: str, side: int, network: nn.Module, image: torch.Tensor) -> NucleiPrediction:
    with torch.no_grad():
        maps = SemanticInferer(TileInferer(side), precision="fp32")(image, network)[0]
    assert 0 <= maps.min() <= maps.max() <= 1
    found = systems.system_instances(name, 0.5, systems.default_rule(name))({"pred": maps})["pred"]
    assert isinstance(found, NucleiPrediction)
    return found


@pytest.mark.parametrize("name", [name for name, system in SYSTEMS.items() if system.rule])
def test_images_without_nuclei_are_a_normal_target(name: str) -> None:
    nothing = np.zeros((16, 20), dtype=np.int64)
    target = SYSTEMS[name].target(nothing, nothing)
    assert (target.dtype, target.shape[1:]) == (np.float32, (16, 20))
    assert np.isfinite(target).all()


@pytest.mark.parametrize(
    ("name", "rule"), [("hovernet", "own"), ("unet", "components"), ("mine", "components")]
)
def test_a_system_has_its_own_rule_or_components(name: str, rule: str) -> None:
    assert systems.default_rule(name) == rule
    assert systems.trained_rule(None, name) == rule


def test_networks_of_copied_bundles_are_dense() -> None:
    loss = MaskLoss()
    assert systems.own_loss("mine", loss) is loss
    assert systems.own_targets("mine", "components") == []
    assert [type(step).__name__ for step in systems.own_targets("mine", "distance")] == ["DistanceTargetd"]


def test_the_foreground_of_a_system_is_parted_by_a_rule_of_dense_ones() -> None:
    maps = torch.zeros(3, 8, 8)
    maps[0, 1:3, 1:3], maps[0, 5:7, 5:7] = 0.8, 0.9
    assert len(systems.system_instances("hovernet", 0.5, "components")({"pred": maps})["pred"]) == 2
    assert len(systems.system_instances("unet", 0.5, "components")({"pred": maps[:2]})["pred"]) == 2


def test_weights_of_before_keep_their_rule(tmp_path: Path) -> None:
    network = Baseline("unet", "small")
    for name, settings, rule in [
        ("hovernet", {"instances": "components"}, "own"),
        ("hovernet", {"instances": "watershed", "baseline": "hovernet"}, "watershed"),
        ("unet", {"instances": "watershed"}, "watershed"),
    ]:
        save_trained(tmp_path / "model.safetensors", network, with_settings(network.header, settings))
        assert systems.trained_rule(tmp_path / "model.safetensors", name) == rule
        assert systems.trained_classes(tmp_path / "model.safetensors") == ["nucleus"]


def test_a_network_says_its_classes_in_the_header() -> None:
    with torch.device("meta"):
        typed = Baseline("unet", "small", class_names=("epithelial", "other"))
    assert json.loads(typed.header["class_names"]) == ["epithelial", "other"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("vnet",), "baseline 'vnet': expected one of unet, unetpp"),
        (("attention_unet-resnet18",), "baseline 'attention_unet-resnet18': expected one of"),
        (("fpn-resnet17",), "FPN on encoder 'resnet17': not built"),
        (("unetpp-mit_b0",), "UnetPlusPlus on encoder 'mit_b0': not built"),
        (("unet", "compact"), "baseline 'unet' of size 'compact': expected small or standard"),
        (("hovernet", "small"), "baseline 'hovernet' of size 'small': expected standard or compact"),
        (("hovernet", "standard", "distance"), "hovernet learns maps of its own"),
        (("unet", "small", "own"), "unet has no rule of its own"),
    ],
)
def test_what_no_system_has_is_refused(arguments: tuple[str, ...], message: str) -> None:
    with torch.device("meta"), pytest.raises(ConfigurationError, match=message):
        systems.build_network(*arguments)


def test_an_encoder_starts_from_a_file_and_refuses_another(tmp_path: Path) -> None:
    network, other = (systems.build_network("fpn-tu-test_resnet", "small") for _ in range(2))
    encoder = other.network.model.encoder.state_dict()
    save_file({**encoder, "classifier.weight": torch.zeros(2, 2)}, tmp_path / "encoder.safetensors")
    start_trunk(network, str(tmp_path / "encoder.safetensors"))
    for name, tensor in network.network.model.encoder.state_dict().items():
        torch.testing.assert_close(tensor, encoder[name])
    first = next(iter(encoder))
    save_file({**encoder, first: torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(f"found (1,) for '{first}', expected")):
        start_trunk(network, str(tmp_path / "other.safetensors"))
    with pytest.raises(CheckpointError, match="imagenet"):
        start_trunk(network, "imagenet")


def test_an_encoder_and_the_compact_size_start_from_the_same_imagenet_weights() -> None:
    encoder = systems.build_network("fpn-tu-tf_efficientnet_lite0", "small")
    compact = systems.build_network("dcan", "compact")
    for network in (encoder, compact):
        start_trunk(network, "imagenet")
    model, trunk = encoder.network.model.encoder.model, compact.network.features.trunk
    torch.testing.assert_close(model.conv_stem.weight, trunk.stem[0].weight)
    torch.testing.assert_close(model.blocks[6][0].conv_pw.weight, trunk.stages[6][0].conv_pw.weight)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("hovernet", (None, 33.63)),
        ("stardist", (0.50, 7.80)),
        ("cppnet", (0.50, 7.81)),
        ("dcan", (0.50, 7.80)),
        ("dist", (0.50, 7.79)),
        ("cdnet", (0.50, 7.81)),
        ("unet-resnet50", (25.71, 32.52)),
        ("unetpp-resnet50", (41.65, 48.99)),
        ("fpn-resnet50", (23.86, 26.12)),
        ("deeplabv3plus-resnet50", (24.27, 26.68)),
        ("segformer-resnet50", (23.78, 24.84)),
    ],
)
def test_sizes_are_those_of_the_table(name: str, millions: tuple[float | None, float]) -> None:
    for size, expected in zip(("small", "standard"), millions, strict=True):
        if expected is not None:
            with torch.device("meta"):
                network = systems.build_network(name, size)
            found = sum(parameter.numel() for parameter in network.parameters()) / 1e6
            assert found == pytest.approx(expected, abs=0.006)
