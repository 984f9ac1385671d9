import json
import sys

import pytest
import torch
from torch import nn

from nucsam_monai.inferers import ResizeInferer, SemanticInferer, TileInferer
from nucsam_monai.losses import HoVerNetBranchLoss, MaskLoss
from nucsam_monai.networks import Baseline
from nucsam_monai.utils.errors import ConfigurationError

NAMES = ["unet", "unetpp", "attention_unet", "unet3p", "nnunet"]


@pytest.mark.parametrize("name", [*NAMES, "swin_unetr", "pretrained_unet"])
def test_small_networks_learn_and_answer(name):
    torch.manual_seed(0)
    network = Baseline(name, "small").train()
    images = torch.randn(2, 3, 128, 64)
    loss = MaskLoss()(network(images), (torch.rand(2, 1, 128, 64) > 0.5).float())
    loss.backward()
    assert all(parameter.grad is not None for parameter in network.parameters() if parameter.requires_grad)
    network.eval()
    for inferer, size in ((TileInferer(64), (70, 65)), (ResizeInferer(64), (20, 50))):
        with torch.no_grad():
            found = SemanticInferer(inferer, precision="fp32")(torch.zeros(1, 3, *size), network)
        assert found.shape == (1, 1, *size)
        assert 0 <= found.min() <= found.max() <= 1


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        ("unet", (0.40, 6.50)),
        ("unetpp", (0.60, 2.41)),
        ("attention_unet", (0.49, 7.94)),
        ("unet3p", (1.69, 26.97)),
        ("nnunet", (0.48, 20.61)),
        ("pretrained_unet", (3.47, 3.47)),
    ],
)
def test_sizes_are_those_of_the_table(name, millions):
    for size, expected in zip(("small", "standard"), millions, strict=True):
        with torch.device("meta"):
            network = Baseline(name, size).eval()
            assert network(torch.empty(1, 3, 256, 256)).shape == (1, 1, 256, 256)
        found = sum(parameter.numel() for parameter in network.parameters()) / 1e6
        assert found == pytest.approx(expected, abs=0.005)


@pytest.mark.parametrize("name", NAMES)
def test_images_that_cannot_be_halved_are_refused(name):
    with torch.device("meta"):
        network = Baseline(name, "small")
        with pytest.raises(
            ConfigurationError, match=rf"{name}: found an image of 64 x 36 px, expected sides"
        ):
            network(torch.empty(1, 3, 64, 36))


def test_header_says_which_network_it_is():
    with torch.device("meta"):
        header = Baseline("unetpp", "small").header
    assert header == {"method": "unetpp", "sam_variant": "none", "options": json.dumps({"size": "small"})}


def test_hovernet_has_its_branches_in_training_and_three_maps_in_evaluation():
    image = torch.empty(2, 3, 256, 256, device="meta")
    with torch.device("meta"):
        network = Baseline("hovernet")
        branches = network.train()(image)
        assert {name: tuple(branch.shape) for name, branch in branches.items()} == {
            "nucleus_prediction": (2, 2, 256, 256),
            "horizontal_vertical": (2, 2, 256, 256),
        }
        assert network.eval()(image).shape == (2, 3, 256, 256)


class KnownBranches(nn.Module):
    def __init__(self, nucleus, distances):
        super().__init__()
        self.branches = {"nucleus_prediction": nucleus, "horizontal_vertical": distances}

    def forward(self, image):
        return self.branches


def test_sigmoid_of_hovernet_is_probability_and_distances_from_0_to_1():
    with torch.device("meta"):
        network = Baseline("hovernet").eval()
    nucleus, distances = torch.randn(1, 2, 256, 256), 2 * torch.rand(1, 2, 256, 256) - 1
    network.network.network = KnownBranches(nucleus, distances)
    found = torch.sigmoid(network(torch.zeros(1, 3, 256, 256)))
    torch.testing.assert_close(found[:, :1], nucleus.softmax(dim=1)[:, 1:])
    torch.testing.assert_close(found[:, 1:], (distances + 1) / 2, atol=6e-4, rtol=0)


def test_hovernet_s_loss_takes_mask_and_distances_in_one_target():
    mask = torch.zeros(2, 1, 32, 32)
    mask[..., 8:20, 8:20] = 1
    ramp = torch.linspace(-1, 1, 12).expand(12, 12)
    distances = torch.zeros(2, 2, 32, 32)
    distances[..., 8:20, 8:20] = torch.stack([ramp, ramp.T])
    right = {
        "nucleus_prediction": torch.cat([30 - 60 * mask, 60 * mask - 30], dim=1),
        "horizontal_vertical": distances,
    }
    target = torch.cat([mask, distances], dim=1)
    loss = HoVerNetBranchLoss()
    assert loss(right, target) < 1e-3
    for branch, wrong in right.items():
        value = (-wrong).requires_grad_()
        worse = loss({**right, branch: value}, target)
        worse.backward()
        assert worse > 0.1
        assert value.grad.abs().max() > 0
    with pytest.raises(ConfigurationError, match="Join the label with"):
        loss(right, mask)


def test_hovernet_takes_one_size_of_images():
    with torch.device("meta"), pytest.raises(ConfigurationError, match="expected 256 x 256 px"):
        Baseline("hovernet")(torch.empty(1, 3, 512, 256))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("mask_rcnn",), "baseline 'mask_rcnn' of size 'standard': expected one of unet, unetpp"),
        (("unet", "large"), "size 'large': .* one of small, standard"),
        (("hovernet", "small"), "hovernet: found size 'small'"),
    ],
)
def test_unknown_names_and_sizes_are_refused(arguments, message):
    with pytest.raises(ConfigurationError, match=message):
        Baseline(*arguments)


@pytest.mark.parametrize("name", [*NAMES, "pretrained_unet"])
def test_two_outputs_are_foreground_and_distance(name):
    with torch.device("meta"):
        network = Baseline(name, "small", outputs=2).eval()
        assert network(torch.empty(2, 3, 128, 64)).shape == (2, 2, 128, 64)
    assert json.loads(network.header["options"]) == {"size": "small", "outputs": 2}


def test_hovernet_has_one_output():
    with pytest.raises(ConfigurationError, match="hovernet: found 2 outputs, expected 1"):
        Baseline("hovernet", outputs=2)


def test_swin_unetr_without_einops_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "einops", None)
    with pytest.raises(ConfigurationError, match=r"pip install 'nucsam-monai\[systems\]'"):
        Baseline("swin_unetr")
