import numpy as np
import pytest
import torch

from nucsam_monai.losses import SACLoss, SACMaskLoss
from nucsam_monai.losses.common import target_at
from nucsam_monai.networks import SACOutput
from nucsam_monai.networks.sac import PointPrompts
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import sac_losses as oracle
from tests.oracles.unsam_losses import mean_cross_entropy

KINDS = ["focal_dice", "dice_ce"]
NO_PROMPTS = PointPrompts(torch.zeros(3, 0, 2), torch.zeros(3, 0, dtype=torch.long))


def draw(side=8, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((3, 1, side, side)) < 0.3).astype(float)
    truth[0] = 0  # an image without nuclei is normal
    return rng.normal(scale=2, size=truth.shape), truth


def output(mask=None, generator=None):
    return SACOutput(
        *(None if logits is None else torch.as_tensor(logits) for logits in (mask, generator)), NO_PROMPTS
    )


@pytest.mark.parametrize("kind", KINDS)
def test_mask_loss_equals_its_definition(kind):
    logits, truth = draw()
    found = SACMaskLoss(kind)(torch.tensor(logits), torch.tensor(truth)).item()
    assert found == pytest.approx(oracle.mask_loss(logits, truth, kind=kind), rel=1e-5)


def test_focal_weight_is_twenty_and_can_be_changed():
    logits, truth = draw()
    for weight in (20.0, 3.0):
        found = SACMaskLoss(focal_weight=weight)(torch.tensor(logits), torch.tensor(truth)).item()
        expected = oracle.mask_loss(logits, truth, kind="focal_dice", focal_weight=weight)
        assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_mask_is_compared_at_its_own_size_and_the_generator_at_its(kind):
    logits, truth = draw(side=4)
    generator, _ = draw(side=8, seed=1)
    target = truth.repeat(4, axis=2).repeat(4, axis=3)
    expected = oracle.mask_loss(logits, truth, kind=kind)
    expected += mean_cross_entropy(generator, truth.repeat(2, axis=2).repeat(2, axis=3))
    found = SACLoss(SACMaskLoss(kind))(output(logits, generator), torch.tensor(target))
    assert found.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("factor", [1, 2, 3, 4])
def test_cell_is_compared_with_what_covers_half_of_it(factor):
    _, target = draw(side=8 * factor)
    found = target_at(torch.zeros(3, 1, 8, 8), torch.tensor(target))
    cells = target.reshape(3, 1, 8, factor, 8, factor).mean(axis=(3, 5))
    np.testing.assert_array_equal(found.numpy(), cells >= 0.5)


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_mask_stays_where_it_is(factor):
    away = np.arange(24 * factor) - (12 * factor - 0.5)
    disc = torch.tensor(away[:, None] ** 2 + away**2 <= (8.3 * factor) ** 2)[None, None]
    found = target_at(torch.zeros(1, 1, 24, 24), disc)[0, 0].numpy()
    np.testing.assert_allclose(np.argwhere(found).mean(axis=0), 11.5)


def test_parts_that_do_not_train_are_left_out():
    logits, truth = draw()
    target = torch.tensor(truth)
    mask = SACLoss()(output(mask=logits), target).item()
    assert mask == pytest.approx(oracle.mask_loss(logits, truth, kind="focal_dice"), rel=1e-5)
    generator = SACLoss()(output(generator=logits), target).item()
    assert generator == pytest.approx(mean_cross_entropy(logits, truth), rel=1e-5)
    with pytest.raises(ConfigurationError, match="found no logits"):
        SACLoss()(output(), target)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_for_empty_full_and_extreme_masks(kind, value, scale, dtype):
    noise = torch.randn(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    mask, generator = ((scale * part).to(dtype).requires_grad_() for part in noise)
    loss = SACLoss(SACMaskLoss(kind))(output(mask, generator), torch.full((3, 1, 8, 8), value))
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert mask.grad.isfinite().all()
    assert generator.grad.isfinite().all()


@pytest.mark.parametrize("kind", KINDS)
def test_right_masks_cost_nothing(kind):
    _, truth = draw()
    logits = 60 * torch.tensor(truth) - 30
    assert SACLoss(SACMaskLoss(kind))(output(logits, logits), torch.tensor(truth)).item() < 1e-6


def test_integer_and_boolean_targets_are_masks_too():
    logits, truth = draw()
    expected = SACLoss()(output(logits, logits), torch.tensor(truth))
    for dtype in (torch.uint8, torch.int64, torch.bool):
        found = SACLoss()(output(logits, logits), torch.tensor(truth).to(dtype))
        torch.testing.assert_close(found, expected)


def test_unknown_kinds_and_other_targets_are_refused():
    with pytest.raises(ConfigurationError, match="loss kind 'ce': expected 'focal_dice' or 'dice_ce'"):
        SACMaskLoss("ce")
    logits, _ = draw()
    for shape in ((3, 2, 8, 8), (2, 1, 8, 8), (3, 8, 8)):
        with pytest.raises(ConfigurationError, match=r"target: found shape .* expected the \(3, 1, 8, 8\)"):
            SACMaskLoss()(torch.tensor(logits), torch.zeros(shape))
