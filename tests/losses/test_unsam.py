import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nucsam_monai.losses.unsam import BatchFocalLoss, MaskLoss, UNSAMLoss, hint_target
from nucsam_monai.networks import UNSAMOutput
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import unsam_losses as oracle


def draw(masks=1, side=16, hint=None, seed=0, coverage=0.3):
    rng = np.random.default_rng(seed)
    logits = rng.normal(scale=2, size=(3, masks, side, side))
    truth = (rng.random((3, masks, side, side)) < coverage).astype(float)
    truth[0] = 0  # an image without nuclei is normal
    hint_logits = None if hint is None else rng.normal(scale=2, size=(3, 1, hint, hint))
    return logits, truth, hint_logits


@pytest.mark.parametrize(
    ("variant", "dice"), itertools.product(["paper", "released"], ["per_image", "pooled"])
)
@pytest.mark.parametrize("focal_weight", [0.8, 0.3])
def test_mask_loss_equals_its_definition(variant, dice, focal_weight):
    logits, truth, _ = draw()
    found = MaskLoss(focal_weight, dice, variant)(torch.tensor(logits), torch.tensor(truth)).item()
    expected = oracle.mask_loss(logits, truth, variant=variant, dice=dice, focal_weight=focal_weight)
    assert found == pytest.approx(expected, rel=1e-5)


def test_the_forms_of_the_loss_differ():
    logits, truth, _ = draw()
    values = {
        MaskLoss(variant=variant, dice=dice)(torch.tensor(logits), torch.tensor(truth)).item()
        for variant, dice in itertools.product(["paper", "released"], ["per_image", "pooled"])
    }
    assert len(values) == 4


def test_released_focal_factor_is_of_the_mean():
    logits, truth, _ = draw()
    found = BatchFocalLoss()(torch.tensor(logits), torch.tensor(truth)).item()
    assert found == pytest.approx(oracle.batch_focal(logits, truth), rel=1e-6)


@pytest.mark.parametrize(
    ("hint", "variant", "rule"),
    [
        (8, "released", "nearest"),
        (4, "released", "nearest"),
        (2, "released", "majority"),
        (8, "covered", "majority"),
        (2, "covered", "majority"),
    ],
)
@pytest.mark.parametrize("masks", [1, 2])
def test_masks_add_up_and_the_hint_is_weighted(masks, hint, variant, rule):
    logits, truth, hint_logits = draw(masks=masks, hint=hint, coverage=0.5)
    output = UNSAMOutput(torch.tensor(logits), torch.tensor(hint_logits))
    expected = sum(
        oracle.mask_loss(logits[:, i : i + 1], truth[:, i : i + 1], variant="paper", dice="per_image")
        for i in range(masks)
    )
    target = oracle.hint_target(truth, hint, rule=rule)
    assert 0 < target.mean() < 1
    for weight in (0.5, 2.0):
        total = expected + weight * oracle.mean_cross_entropy(hint_logits, target)
        found = UNSAMLoss(spgen_weight=weight, hint_target=variant)(output, torch.tensor(truth))
        assert found.item() == pytest.approx(total, rel=1e-5)
    without = UNSAMLoss()(UNSAMOutput(output.mask_logits, None), torch.tensor(truth))
    assert without.item() == pytest.approx(expected, rel=1e-5)


def test_loss_takes_the_mask_loss_that_it_is_given():
    logits, truth, _ = draw()
    found = UNSAMLoss(MaskLoss(variant="released"))(
        UNSAMOutput(torch.tensor(logits), None), torch.tensor(truth)
    )
    assert found.item() == pytest.approx(
        oracle.mask_loss(logits, truth, variant="released", dice="per_image"), rel=1e-5
    )


@settings(max_examples=25, deadline=None)
@given(
    cells=st.integers(1, 5),
    cell=st.sampled_from([2, 4, 8, 16]),
    masks=st.integers(1, 2),
    seed=st.integers(0, 99),
)
def test_hint_target_equals_its_definition(cells, cell, masks, seed):
    _, truth, _ = draw(masks=masks, side=cells * cell, seed=seed, coverage=0.35)
    for variant, rule in (("covered", "majority"), ("released", "nearest" if cell <= 4 else "majority")):
        found = hint_target(torch.tensor(truth), (cells, cells), variant)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), oracle.hint_target(truth, cells, rule=rule))


@pytest.mark.parametrize(("variant", "moved"), [("covered", 0.0), ("released", 1.5)])
def test_hint_is_taught_where_the_nucleus_is(variant, moved):
    rows, columns = np.indices((256, 256))
    disc = torch.tensor((rows - 127.5) ** 2 + (columns - 127.5) ** 2 <= 60**2)[None, None]
    centre = np.argwhere(hint_target(disc, (64, 64), variant)[0, 0].numpy()).mean(axis=0)
    np.testing.assert_allclose(4 * (centre + 0.5) - 0.5, 127.5 + moved, atol=1e-6 if moved == 0 else 0.3)


def test_half_covered_token_is_foreground():
    target = torch.zeros(1, 1, 16, 32)
    target[..., :8, :16] = 1  # half of the left token
    target[..., :7, 16:] = 1
    assert hint_target(target, (1, 2)).tolist() == [[[[1.0, 0.0]]]]


@pytest.mark.parametrize(
    ("variant", "dice"), itertools.product(["paper", "released"], ["per_image", "pooled"])
)
@pytest.mark.parametrize("value", [0.0, 1.0])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_for_empty_full_and_extreme_masks(variant, dice, value, scale, dtype):
    logits = (scale * torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))).to(dtype)
    hint = (scale * torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(1))).to(dtype)
    logits.requires_grad_()
    hint.requires_grad_()
    target = torch.full((2, 1, 16, 16), value)
    loss = UNSAMLoss(MaskLoss(variant=variant, dice=dice))(UNSAMOutput(logits, hint), target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()
    assert hint.grad.isfinite().all()


@pytest.mark.parametrize(
    ("variant", "dice"), itertools.product(["paper", "released"], ["per_image", "pooled"])
)
def test_right_masks_cost_nothing(variant, dice):
    _, truth, _ = draw()
    logits = 60 * torch.tensor(truth) - 30
    assert MaskLoss(variant=variant, dice=dice)(logits, torch.tensor(truth)).item() < 1e-6


def test_integer_and_boolean_targets_are_masks_too():
    logits, truth, hint = draw(hint=4)
    output = UNSAMOutput(torch.tensor(logits), torch.tensor(hint))
    expected = UNSAMLoss()(output, torch.tensor(truth))
    for dtype in (torch.uint8, torch.int64, torch.bool):
        torch.testing.assert_close(UNSAMLoss()(output, torch.tensor(truth).to(dtype)), expected)


def test_unknown_forms_are_refused():
    with pytest.raises(ConfigurationError, match="loss dice 'mean': expected 'per_image' or 'pooled'"):
        MaskLoss(dice="mean")
    with pytest.raises(ConfigurationError, match="loss variant 'code': expected 'paper' or 'released'"):
        MaskLoss(variant="code")
    with pytest.raises(ConfigurationError, match="loss hint_target 'code': expected 'covered' or 'released'"):
        UNSAMLoss(hint_target="code")


@pytest.mark.parametrize("shape", [(3, 1, 16, 16), (3, 2, 8, 8), (3, 3, 16, 16)])
def test_targets_of_another_shape_are_refused(shape):
    logits, _, _ = draw(masks=2)
    with pytest.raises(ConfigurationError, match=r"found shape .* expected the masks' \(3, 2, 16, 16\)"):
        UNSAMLoss()(UNSAMOutput(torch.tensor(logits), None), torch.zeros(shape))
