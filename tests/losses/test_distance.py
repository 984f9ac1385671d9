import numpy as np
import pytest
import torch
from torch import nn

from nucsam_monai.losses import DistanceInstanceLoss, EUNet3PLoss, EUNet3PMaskLoss, SACLoss, SACMaskLoss
from nucsam_monai.losses.common import cell_means
from nucsam_monai.networks import EUNet3POutput, SACOutput
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import distance_loss as oracle


def draw(channels=2, side=8, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(3, channels, side, side))
    nucleus = (rng.random((3, 1, side, side)) < 0.4).astype(float)
    nucleus[0] = 0  # an image without nuclei is normal
    return logits, np.concatenate([nucleus, nucleus * rng.random(nucleus.shape)], axis=1)


class Nothing(nn.Module):
    def forward(self, logits, target):
        return logits.sum() * 0


@pytest.mark.parametrize(("weight", "l1_weight", "beta"), [(1.0, 2.0, 0.1), (0.3, 0.0, 0.1), (2.0, 5.0, 0.4)])
def test_loss_equals_its_definition(weight, l1_weight, beta):
    logits, target = draw()
    options = {"distance_weight": weight, "l1_weight": l1_weight, "beta": beta}
    found = DistanceInstanceLoss(**options)(torch.tensor(logits), torch.tensor(target)).item()
    foreground, truth = logits[:, :1], target[:, :1]
    expected = (
        oracle.dice(foreground, truth)
        + oracle.soft_cross_entropy(foreground, truth)
        + weight * oracle.distance_loss(logits[:, 1:], target[:, 1:], l1_weight, beta)
    )
    assert found == pytest.approx(expected, rel=1e-6)
    alone = DistanceInstanceLoss(Nothing(), **options)(torch.tensor(logits), torch.tensor(target)).item()
    expected = weight * oracle.distance_loss(logits[:, 1:], target[:, 1:], l1_weight, beta)
    assert alone == pytest.approx(expected, rel=1e-6)


def test_the_method_s_own_loss_takes_all_channels_but_the_last():
    logits, target = (torch.tensor(array).float() for array in draw(channels=3))
    own, distance = EUNet3PMaskLoss(), DistanceInstanceLoss(Nothing())
    found = EUNet3PLoss(DistanceInstanceLoss(own))(EUNet3POutput(logits, (logits / 2,)), target)
    expected = [
        own(each[:, :2], target[:, :1]) + distance.of_distance(each[:, 2:], target[:, 1:])
        for each in (logits, logits / 2)
    ]
    torch.testing.assert_close(found, (expected[0] + expected[1]) / 2)


def test_masks_at_a_fourth_of_the_size_have_the_mean_of_each_cell():
    logits, _ = (torch.tensor(array).float() for array in draw(side=4))
    _, target = (torch.tensor(array).float() for array in draw(side=16))
    own, loss = SACMaskLoss(), DistanceInstanceLoss(SACMaskLoss())
    generator = torch.randn(3, 1, 16, 16)
    cells = target[:, 1:].reshape(3, 1, 4, 4, 4, 4).mean(dim=(3, 5))
    torch.testing.assert_close(cell_means(logits[:, 1:], target[:, 1:]), cells)
    found = SACLoss(loss)(SACOutput(logits, generator, None), target)
    expected = (
        own(logits[:, :1], target[:, :1])
        + loss.of_distance(logits[:, 1:], cells)
        + nn.functional.binary_cross_entropy_with_logits(generator, target[:, :1])
    )
    torch.testing.assert_close(found, expected)


def test_gradients_reach_both_maps_and_fall_at_the_truth():
    _, target = (torch.tensor(array).float() for array in draw())
    right = torch.logit(target.clamp(1e-4, 1 - 1e-4)).requires_grad_()
    wrong = (-right).detach().requires_grad_()
    loss = DistanceInstanceLoss()
    assert loss(right, target) < loss(wrong, target)
    loss(wrong, target).backward()
    assert (wrong.grad.abs().amax(dim=(0, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("logits", "target"),
    [
        ((2, 2, 8, 8), (2, 1, 8, 8)),
        ((2, 2, 8, 8), (2, 3, 8, 8)),
        ((2, 1, 8, 8), (2, 2, 8, 8)),
        ((2, 2, 8, 8), (1, 2, 8, 8)),
        ((2, 2, 8, 8), (2, 2, 9, 8)),
        ((2, 2, 8, 8), (2, 2, 8, 4)),
        ((2, 2, 8, 8), (2, 8, 8)),
    ],
)
def test_a_target_of_another_shape_is_refused(logits, target):
    with pytest.raises(ConfigurationError, match=r"target \(.*\): expected .*same setting of instances"):
        DistanceInstanceLoss()(torch.zeros(logits), torch.zeros(target))
