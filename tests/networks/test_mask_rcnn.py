"""Mask R-CNN: what it learns from, what it gives."""

import pytest
import torch

from nucsam_monai.networks import MaskRCNN


@pytest.fixture(scope="module")
def network() -> MaskRCNN:
    torch.manual_seed(0)
    return MaskRCNN(("left", "right"), "resnet18")


def test_it_has_the_parameters_of_the_paper_s_network() -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in MaskRCNN().parameters()) == 43975515


def test_a_nucleus_of_one_pixel_and_an_image_without_nuclei_are_learned_from(network: MaskRCNN) -> None:
    masks = torch.zeros(2, 64, 64, dtype=torch.uint8)
    masks[0, 10:20, 10:30], masks[1, 63, 63] = 1, 1
    classes = torch.tensor([0, 1])
    losses = network.train()(torch.randn(2, 3, 64, 64), [masks, masks[:0]], [classes, classes[:0]])
    assert set(losses) == {
        "loss_classifier",
        "loss_box_reg",
        "loss_mask",
        "loss_objectness",
        "loss_rpn_box_reg",
    }
    assert all(loss.isfinite() for loss in losses.values())


def test_the_best_nuclei_come_first_and_masks_have_the_size_of_the_image(network: MaskRCNN) -> None:
    with torch.no_grad():
        (found,) = network.eval()(torch.randn(1, 3, 64, 64))
    assert found.masks.shape == (len(found.scores), 1, 64, 64)
    assert (found.scores.diff() <= 0).all()
    assert set(found.class_ids.tolist()) <= {0, 1}
