import numpy as np
import pytest
import torch
from monai.losses import DiceLoss, FocalLoss

from nucsam_monai.losses import NucleusTargets, SegmentorLoss
from nucsam_monai.networks import MaskPrediction
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import segmentor_losses as oracle


def draw(prompts=3, side=8, seed=0):
    rng = np.random.default_rng(seed)
    truth = (rng.random((prompts, 1, side, side)) < 0.3).astype(float)
    truth[0] = 0
    truth[0, 0, 2, 3] = 1  # the sizes differ, so that pooled and per mask do
    return rng.normal(scale=2, size=truth.shape), rng.random((prompts, 1)), truth


def loss_of(logits, iou, truth, classes=None, class_logits=None, **options):
    output = MaskPrediction(torch.as_tensor(logits), torch.as_tensor(iou), class_logits)
    return SegmentorLoss(**options)(output, NucleusTargets(torch.as_tensor(truth)[:, 0], classes))


@pytest.mark.parametrize("dice", ["pooled", "per_mask"])
@pytest.mark.parametrize("focal_weight", [20.0, 3.0])
def test_loss_equals_its_definition(dice, focal_weight):
    arguments = draw()
    found = loss_of(*arguments, dice=dice, focal_weight=focal_weight).item()
    expected = oracle.segmentor_loss(*arguments, dice_of=dice, focal_weight=focal_weight)
    assert found == pytest.approx(expected, rel=1e-5)
    assert expected != pytest.approx(
        oracle.segmentor_loss(*arguments, dice_of="per_mask" if dice == "pooled" else "pooled"), rel=1e-3
    )


def test_terms_are_monais_focal_and_batch_dice():
    logits, _, truth = draw()
    logits, truth = torch.tensor(logits).float(), torch.tensor(truth).float()
    iou = torch.tensor([[oracle.soft_iou(*pair)] for pair in zip(logits, truth, strict=True)])
    focal = FocalLoss(gamma=2.0, alpha=None)(logits, truth)
    dice = DiceLoss(sigmoid=True, batch=True, smooth_nr=0, smooth_dr=1e-7)(logits, truth)
    torch.testing.assert_close(loss_of(logits, iou, truth), 20 * focal + dice, rtol=1e-4, atol=1e-6)


def test_logits_are_enlarged_to_the_image():
    logits, iou, _ = draw(side=4)
    _, _, truth = draw(side=8, seed=1)
    large = torch.nn.functional.interpolate(torch.tensor(logits), scale_factor=2, mode="bilinear")
    expected = oracle.segmentor_loss(large.numpy(), iou, truth)
    assert loss_of(logits, iou, truth).item() == pytest.approx(expected, rel=1e-5)


def test_masks_may_be_reduced_to_the_logits_instead():
    logits, iou, _ = draw(side=4)
    _, _, truth = draw(side=8, seed=1)
    covered = truth.reshape(*truth.shape[:-2], 4, 2, 4, 2).mean(axis=(-3, -1)) >= 0.5
    expected = oracle.segmentor_loss(logits, iou, covered.astype(float))
    assert loss_of(logits, iou, truth, loss_at="logits").item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("detach", [False, True])
def test_iou_term_trains_the_masks_unless_detached(detach):
    logits, iou, truth = (torch.tensor(part).float().requires_grad_() for part in draw())
    gradients = []
    for shift in (0.0, 0.5):  # focal and Dice do not know the predicted IoU
        loss = loss_of(logits, iou + shift, truth.detach(), detach_iou_target=detach)
        gradients.append(torch.autograd.grad(loss, [logits, iou]))
    assert torch.equal(gradients[0][0], gradients[1][0]) == detach
    assert not torch.equal(gradients[0][1], gradients[1][1])


def test_class_head_adds_the_focal_loss_of_the_classes():
    arguments = draw()
    class_logits, classes = torch.tensor([[1.0, 0, -1], [0, 2, 0], [3, 0, 0]]), torch.tensor([0, 2, 0])
    found = loss_of(*arguments, classes, class_logits).item()
    expected = oracle.segmentor_loss(*arguments) + oracle.class_focal(class_logits.tolist(), [0, 2, 0])
    assert found == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ConfigurationError, match="found no classes"):
        loss_of(*arguments, None, class_logits)


def test_no_prompts_cost_nothing_and_reach_everything():
    parts = [torch.ones(shape, requires_grad=True) for shape in ((2, 1, 4, 4), (2, 1), (2, 3))]
    output = MaskPrediction(*(part[:0] for part in parts))
    loss = SegmentorLoss()(output, NucleusTargets(torch.zeros(0, 8, 8), torch.zeros(0, dtype=torch.long)))
    loss.backward()
    assert loss.item() == 0
    assert all(part.grad is not None and not part.grad.any() for part in parts)


@pytest.mark.parametrize("dice", ["pooled", "per_mask"])
@pytest.mark.parametrize("value", [0, 1])
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_are_finite_for_empty_full_and_extreme_masks(dice, value, scale, dtype):
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    logits = (scale * noise).to(dtype).requires_grad_()
    loss = loss_of(logits, torch.ones(3, 1), torch.full((3, 1, 8, 8), value, dtype=torch.uint8), dice=dice)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert logits.grad.isfinite().all()


def test_right_masks_cost_nothing():
    _, _, truth = draw()
    logits = 60 * torch.tensor(truth) - 30
    assert loss_of(logits, torch.ones(3, 1), truth).item() < 1e-6


@pytest.mark.parametrize("options", [{"dice": "per_image"}, {"loss_at": "mask"}])
def test_unknown_options_are_refused(options):
    with pytest.raises(ConfigurationError, match=next(iter(options.values()))):
        SegmentorLoss(**options)


def test_as_many_masks_as_prompts_are_expected():
    logits, iou, truth = draw()
    with pytest.raises(ConfigurationError, match="target: found shape"):
        loss_of(logits, iou, truth[:2])
