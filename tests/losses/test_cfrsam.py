import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from nucsam_monai.losses import CFRSAMLoss, CFRSAMTarget
from nucsam_monai.losses.cfrsam import inner_boundaries, sobel_boundaries
from nucsam_monai.networks import CFRSAMOutput
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles import cfrsam_losses as oracle

SIDE = 8
COUNTS = [2, 0, 1]
OWNERS = [0, 0, 2]


def draw(seed=0):
    """Logits of both stages and of the boundary, predicted IoUs, masks, and the foreground of three images."""
    rng = np.random.default_rng(seed)
    coarse, refined, boundary = (rng.normal(scale=2, size=(3, SIDE, SIDE)) for _ in range(3))
    foreground = np.zeros((3, SIDE, SIDE), dtype=bool)
    foreground[0, 1:4, 1:7] = foreground[0, 4:7, 1:7] = True  # two nuclei that touch
    foreground[2, 5:, 5:] = True
    masks = foreground[OWNERS].copy()
    masks[0, 4:], masks[1, :4] = False, False
    return coarse, refined, boundary, rng.random(3), masks, foreground


def tensors(coarse, refined, boundary, iou, masks, foreground):
    output = [torch.tensor(part)[:, None] for part in (coarse, refined, iou, boundary)]
    target = CFRSAMTarget(torch.tensor(masks), torch.tensor(foreground), torch.tensor(COUNTS))
    return CFRSAMOutput(*output), target


@pytest.mark.parametrize("dice", ["pooled", "per_mask"])
@pytest.mark.parametrize("iou_target", ["both", "refined"])
@pytest.mark.parametrize("boundary_target", ["inner", "sobel_semantic"])
def test_loss_equals_its_definition(dice, iou_target, boundary_target):
    coarse, refined, boundary, iou, masks, foreground = example = draw()
    loss = CFRSAMLoss(dice=dice, iou_target=iou_target, boundary_target=boundary_target)
    expected = oracle.mask_loss(coarse, masks, iou if iou_target == "both" else None, dice=dice)
    expected += oracle.mask_loss(refined, masks, iou, dice=dice)
    if boundary_target == "inner":
        edges = np.stack([oracle.inner_boundary(mask) for mask in masks])
    else:
        pairs = zip(masks, foreground[OWNERS], strict=True)
        edges = np.stack([oracle.sobel_boundary(mask, whole) for mask, whole in pairs])
    expected += 0.01 * oracle.cross_entropy(boundary, edges)
    assert loss(*tensors(*example)).item() == pytest.approx(expected, rel=1e-5)


def test_weights_can_be_changed():
    coarse, refined, boundary, iou, masks, _ = example = draw()
    expected = sum(oracle.mask_loss(logits, masks, iou, focal_weight=3.0) for logits in (coarse, refined))
    expected += 0.5 * oracle.cross_entropy(boundary, np.stack([oracle.inner_boundary(m) for m in masks]))
    found = CFRSAMLoss(focal_weight=3.0, boundary_weight=0.5)(*tensors(*example)).item()
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("iou_target", ["both", "refined"])
def test_coarse_masks_alone_have_sam_s_loss(iou_target):
    coarse, _, _, iou, masks, _ = example = draw()
    output, target = tensors(*example)
    found = CFRSAMLoss(iou_target=iou_target)(output._replace(refined=None, boundary=None), target).item()
    assert found == pytest.approx(oracle.mask_loss(coarse, masks, iou), rel=1e-5)


def test_coarse_logits_are_enlarged_to_the_masks():
    output, target = tensors(*draw())
    small = torch.full((3, 1, 2, 2), 1.5)
    constant = output._replace(coarse=torch.full((3, 1, SIDE, SIDE), 1.5))
    loss = CFRSAMLoss()
    torch.testing.assert_close(
        loss(output._replace(coarse=small), target).double(), loss(constant, target).double()
    )


@pytest.mark.parametrize("detach", [False, True])
def test_gradient_of_the_iou_through_the_masks_can_be_stopped(detach):
    output, target = tensors(*draw())
    gradients = []
    for iou in (output.iou, output.iou + 1):
        logits = output.refined.clone().requires_grad_()
        loss = CFRSAMLoss(detach_iou_target=detach)
        loss(output._replace(refined=logits, iou=iou), target).backward()
        gradients.append(logits.grad)
    assert torch.equal(*gradients) == detach


def test_touching_nuclei_have_a_boundary_between_them_only_in_the_inner_target():
    *_, masks, foreground = (torch.as_tensor(part) for part in draw())
    inner = inner_boundaries(masks)
    assert inner[0, 0, 3, 2:6].tolist() == inner[1, 0, 4, 2:6].tolist() == [1.0] * 4
    edges = sobel_boundaries(masks, foreground, torch.tensor(COUNTS))
    assert edges[0, 0, 3, 3:5].tolist() == [0.0] * 2
    assert edges[0, 0, 1, 3:5].min() > 0


@given(arrays.arrays(bool, (2, 5, 6)), st.booleans())
def test_boundaries_equal_their_definitions(masks, whole):
    foreground = masks.any(axis=0, keepdims=True) | whole
    inner = inner_boundaries(torch.tensor(masks))[:, 0].numpy()
    np.testing.assert_array_equal(inner, [oracle.inner_boundary(mask) for mask in masks])
    edges = sobel_boundaries(torch.tensor(masks), torch.tensor(foreground), torch.tensor([2]))[:, 0]
    expected = [oracle.sobel_boundary(mask, foreground[0]) for mask in masks]
    np.testing.assert_allclose(edges.numpy(), expected, atol=1e-6)


def test_no_prompts_cost_nothing_but_keep_the_graph():
    output, target = tensors(*draw())
    empty = CFRSAMOutput(*(part[:0].clone().requires_grad_() for part in output))
    loss = CFRSAMLoss()(empty, target._replace(masks=target.masks[:0]))
    assert loss.item() == 0
    loss.backward()
    assert all(part.grad is not None for part in empty)


def test_masks_without_a_pixel_keep_the_loss_finite():
    output, target = tensors(*draw())
    for dice in ("pooled", "per_mask"):
        logits = output.refined.clone().requires_grad_()
        empty = target._replace(masks=torch.zeros_like(target.masks))
        CFRSAMLoss(dice=dice)(output._replace(refined=logits), empty).backward()
        assert logits.grad.isfinite().all()


def test_wrong_options_and_targets_are_refused():
    output, target = tensors(*draw())
    for option in ("dice", "iou_target", "boundary_target"):
        with pytest.raises(ConfigurationError, match=f"loss {option} 'none': expected one of"):
            CFRSAMLoss(**{option: "none"})
    with pytest.raises(ConfigurationError, match="found 2 masks, expected one for each of 3 prompts"):
        CFRSAMLoss()(output, target._replace(masks=target.masks[:2]))
    with pytest.raises(ConfigurationError, match="found no foreground or no prompts_per_image"):
        CFRSAMLoss(boundary_target="sobel_semantic")(output, CFRSAMTarget(target.masks))
