import numpy as np
import pytest
import torch

from nucsam_monai.losses import EUNet3PLoss, EUNet3PMaskLoss
from nucsam_monai.networks import EUNet3POutput
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import eunet3p_losses as oracle

KINDS = {"generalized_dice_focal": oracle.softmax_loss, "sigmoid_focal_dice": oracle.sigmoid_loss}


def draw(side=8, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((3, 1, side, side)) < 0.3).astype(float)
    truth[0], truth[1] = 0, 1  # images without nuclei, or with nothing else, are normal
    return rng.normal(scale=2, size=(3, 2, side, side)), truth


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("side", [8, 48])
def test_loss_equals_its_definition(kind, side):
    logits, truth = draw(side)
    found = EUNet3PMaskLoss(kind)(torch.tensor(logits), torch.tensor(truth)).item()
    assert found == pytest.approx(KINDS[kind](logits, truth), rel=1e-5)


def test_one_logit_stands_for_the_difference_of_two():
    logits, truth = (torch.tensor(one) for one in draw())
    loss = EUNet3PMaskLoss()
    torch.testing.assert_close(loss(logits[:, 1:] - logits[:, :1], truth), loss(logits, truth))


def test_one_logit_stands_for_opposite_ones_where_channels_are_independent():
    logits, truth = (torch.tensor(one) for one in draw())
    loss = EUNet3PMaskLoss("sigmoid_focal_dice")
    opposite = torch.cat([-logits[:, 1:], logits[:, 1:]], dim=1)
    torch.testing.assert_close(loss(logits[:, 1:], truth), loss(opposite, truth))


def test_supervised_levels_count_like_the_output():
    logits, truth = draw()
    others = [torch.tensor(draw(seed=seed)[0]) for seed in (1, 2)]
    loss, target = EUNet3PLoss(), torch.tensor(truth)
    found = loss(EUNet3POutput(torch.tensor(logits), tuple(others)), target)
    expected = [oracle.softmax_loss(one, truth) for one in (logits, *(other.numpy() for other in others))]
    assert found.item() == pytest.approx(sum(expected) / 3, rel=1e-5)
    assert loss(EUNet3POutput(torch.tensor(logits)), target).item() == pytest.approx(expected[0], rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_for_empty_full_and_extreme_masks(kind, value, scale, dtype):
    noise = torch.randn(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = (scale * noise).to(dtype).requires_grad_()
    loss = EUNet3PMaskLoss(kind)(logits, torch.full((3, 1, 8, 8), value))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_right_masks_cost_nothing_and_wrong_ones_as_much_on_large_images(kind):
    mask = torch.zeros(1, 1, 512, 512)
    mask[..., 100:110, 100:110] = 1
    logits = torch.cat([30 - 60 * mask, 60 * mask - 30], dim=1)
    loss = EUNet3PMaskLoss(kind)
    assert loss(logits, mask) < 1e-6
    assert loss(torch.cat([torch.full_like(mask, 5.0), torch.full_like(mask, -5.0)], dim=1), mask) > 0.2


def test_unknown_kinds_and_other_targets_are_refused():
    with pytest.raises(ConfigurationError, match="loss kind 'dice': expected 'generalized_dice_focal' or"):
        EUNet3PMaskLoss("dice")
    logits = torch.zeros(3, 2, 8, 8)
    for shape in ((3, 2, 8, 8), (2, 1, 8, 8), (3, 8, 8), (3, 1, 4, 4)):
        with pytest.raises(ConfigurationError, match="one mask of all nuclei"):
            EUNet3PMaskLoss()(logits, torch.zeros(shape))
    with pytest.raises(ConfigurationError, match=r"logits \(3, 3, 8, 8\)"):
        EUNet3PMaskLoss()(torch.zeros(3, 3, 8, 8), torch.zeros(3, 1, 8, 8))
