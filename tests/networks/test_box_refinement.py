import pytest
import torch
from torch.nn import functional as F

from nucsam_monai.networks.cfrsam.refinement import (
    HALO_PX,
    REACH_PX,
    BGMROptions,
    BoundaryRefinement,
    refine_in_boxes,
)

SIDE = 128
OWNERS = torch.tensor([0, 0, 1])


@pytest.fixture
def case():
    """A thin refinement whose taps move by half of the permitted reach each, its inputs and coarse logits."""
    torch.manual_seed(0)
    network = BoundaryRefinement(16, 4, BGMROptions()).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(0, 0.5)
    move_taps(network, REACH_PX / 2)
    guides = network.guides(torch.randn(2, 16, SIDE // 16, SIDE // 16), torch.randn(2, 3, SIDE, SIDE))
    coarse = torch.full((3, 1, SIDE // 4, SIDE // 4), -3.0)
    coarse[0, 0, 15:17, 14:16] = 2.0  # in the middle
    coarse[1, 0, :2, 29:] = 2.0  # in a corner
    coarse[2, 0, 6:12, 20:22] = 2.0
    return network, guides, torch.randn(3, 2, SIDE // 4, SIDE // 4), coarse


def move_taps(network, pixels):
    signs = torch.tensor([1.0, -1.0]).repeat(9)
    with torch.no_grad():
        for layer in (network.fusion.deformable, network.deformable):
            layer.predict.weight[:18] = 0
            layer.predict.bias[:18] = pixels * signs


def seen_sizes(network):
    sizes = []
    network.register_forward_pre_hook(lambda _, args: sizes.append(tuple(args[0].evidence.shape[-2:])))
    return sizes


@pytest.mark.parametrize("add", [False, True])
def test_boxes_hold_what_refining_the_whole_image_gives(case, add):
    network, guides, upscaled, coarse = case
    enlarged = F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    with torch.no_grad():
        whole = network(guides, upscaled, OWNERS).logits + add * enlarged
    sizes = seen_sizes(network)
    found = refine_in_boxes(network, guides, upscaled, OWNERS, coarse, margin_px=6, add=add)
    assert all(min(size) < SIDE for size in sizes)
    boxes = [((54, 74), (50, 70)), ((0, 14), (110, 128)), ((18, 54), (74, 94))]
    for n, (rows, columns) in enumerate(boxes):
        inside = torch.zeros(1, SIDE, SIDE, dtype=torch.bool)
        inside[:, slice(*rows), slice(*columns)] = True
        torch.testing.assert_close(found[n][inside], whole[n][inside], rtol=1e-4, atol=1e-4)
        assert torch.equal(found[n][~inside], enlarged[n][~inside])
        assert found[n][~inside].max() < 0


@pytest.mark.parametrize("add", [False, True])
def test_taps_that_look_too_far_and_empty_masks_need_the_whole_image(case, add):
    network, guides, upscaled, coarse = case
    coarse[2] = -1
    enlarged = F.interpolate(coarse, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
    for pixels, far in ((REACH_PX / 2, [2]), (REACH_PX / 2 + 0.1, [0, 1, 2])):
        move_taps(network, pixels)
        with torch.no_grad():
            whole = network(guides, upscaled, OWNERS).logits + add * enlarged
        found = refine_in_boxes(network, guides, upscaled, OWNERS, coarse, margin_px=6, add=add)
        for n in range(3):
            assert torch.allclose(found[n], whole[n], rtol=1e-4, atol=1e-4) == (n in far)


def test_a_smaller_halo_takes_smaller_windows_and_changes_little_next_to_the_nucleus(case):
    network, guides, upscaled, coarse = case
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.div_(10)  # as after a training, pixels far away matter less
    whole = refine_in_boxes(network, guides, upscaled, OWNERS, coarse, margin_px=6)
    sizes = seen_sizes(network)
    found = refine_in_boxes(network, guides, upscaled, OWNERS, coarse, margin_px=6, halo_px=4)
    assert max(max(size) for size in sizes) <= 48
    near = coarse > 0
    at_nuclei = F.interpolate(near.float(), size=(SIDE, SIDE)) > 0
    assert (found - whole).abs()[at_nuclei].max() < 0.02 * whole.abs()[at_nuclei].max()


def test_large_nuclei_are_refined_on_the_whole_image(case):
    network, guides, upscaled, coarse = case
    coarse[:, :, 3:29, 3:29] = 1
    sizes = seen_sizes(network)
    refine_in_boxes(network, guides, upscaled, OWNERS, coarse, margin_px=6)
    assert set(sizes) == {(SIDE, SIDE)}


def test_windows_have_no_room_to_spare(case, monkeypatch):
    """With a halo of half the size the logits differ, so the comparison above can fail."""
    network, guides, upscaled, coarse = case
    monkeypatch.setattr("nucsam_monai.networks.cfrsam.refinement.HALO_PX", 4)
    monkeypatch.setattr("nucsam_monai.networks.cfrsam.refinement._WINDOW_STEP_PX", 4)
    assert HALO_PX > 4
    with torch.no_grad():
        whole = network(guides, upscaled, OWNERS).logits
    found = refine_in_boxes(network, guides, upscaled, OWNERS, coarse, margin_px=6)
    assert not torch.allclose(found[0, 0, 54:74, 50:70], whole[0, 0, 54:74, 50:70], rtol=1e-4, atol=1e-4)
