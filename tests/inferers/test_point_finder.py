import numpy as np
import pytest
import torch
from torch import nn

from nucsam_monai.engines import PreparePromptsBatch
from nucsam_monai.inferers import DetectedPoints, PointFinder
from nucsam_monai.networks import Prompter, PrompterOutput
from nucsam_monai.networks.prompter import PrompterOptions
from nucsam_monai.utils.errors import ConfigurationError

IMAGE = torch.zeros(1, 3, 32, 32)


class FixedPrompter(nn.Module):
    """Three anchors: class 1 at (4, 4), background that would be class 1 at (20, 4), class 0 at (4, 20)."""

    options = PrompterOptions()

    def __init__(self):
        super().__init__()
        self.masks_asked_for = []

    def forward(self, image, *, with_mask=True):
        self.masks_asked_for.append(with_mask)
        mask = torch.ones(1, 1, 32, 32)
        mask[..., 16:, :] = -1
        logits = torch.tensor([[[0.0, 3, 1], [0, 1, 3], [2, 0, 0]]])
        points = torch.tensor([[[4.0, 4], [20, 4], [4, 20]]])
        return PrompterOutput(points, logits, mask if with_mask else None)


@pytest.mark.parametrize(("mask_filter", "expected"), [(False, [[4, 4], [4, 20]]), (True, [[4, 4]])])
def test_the_auxiliary_mask_is_computed_and_used_only_by_the_filter(mask_filter, expected):
    prompter = FixedPrompter()
    found = PointFinder(prompter, mask_filter=mask_filter, radius_px=3)(IMAGE)
    assert found.points.tolist() == expected
    assert prompter.masks_asked_for == [mask_filter]


def test_given_points_get_the_class_of_the_nearest_anchor_even_if_it_is_background():
    points = torch.tensor([[5.0, 30], [25, 1], [1, 1]])
    found = PointFinder(FixedPrompter(), radius_px=3).classify(IMAGE, points)
    assert found.class_ids.tolist() == [0, 1, 1]
    np.testing.assert_array_equal(found.points, points)
    assert len(PointFinder(FixedPrompter()).classify(IMAGE, points[:0])) == 0


def test_a_filter_without_a_mask_is_refused():
    prompter = Prompter(1, options={"backbone": "compact", "aux_mask": False})
    with pytest.raises(ConfigurationError, match="no auxiliary mask"):
        PointFinder(prompter, mask_filter=True)


BATCH = {"image": IMAGE, "id": ["a"], "points": torch.tensor([[[1.0, 2]]])}


def prompts_of(batch, given_points):
    finder = PointFinder(FixedPrompter())
    image, label, (prompts,), named = PreparePromptsBatch(finder, given_points=given_points)(batch)
    assert image.equal(IMAGE)
    assert label is None
    assert named == {}
    return prompts, finder


@pytest.mark.parametrize(("batch", "given"), [(BATCH, False), ({"image": IMAGE, "id": ["a"]}, True)])
def test_the_prompter_finds_the_points_where_none_are_given(batch, given):
    prompts, finder = prompts_of(batch, given)
    assert prompts is finder


def test_given_points_come_with_their_classes_or_get_them():
    prompts, _ = prompts_of({**BATCH, "point_classes": torch.tensor([[1]])}, True)
    assert isinstance(prompts, DetectedPoints)
    assert (prompts.points.tolist(), prompts.class_ids.tolist()) == ([[1, 2]], [1])
    classified = prompts_of({**BATCH, "point_labels": torch.tensor([[1]])}, True)[0](IMAGE)
    assert (classified.points.tolist(), classified.class_ids.tolist()) == ([[1, 2]], [1])


def test_background_points_are_no_prompts():
    with pytest.raises(ConfigurationError, match="points of 'a'"):
        prompts_of({**BATCH, "point_labels": torch.tensor([[0]])}, True)


def test_sizes_go_with_their_points():
    torch.manual_seed(0)
    prompter = Prompter(2, options={"backbone": "compact", "channels": 16, "sizes": True}).eval()
    image = torch.randn(1, 3, 64, 64)
    finder = PointFinder(prompter, radius_px=6)
    found = finder(image)
    assert len(found) > 0
    output = prompter(image)
    anchors = output.points[0].detach().clamp(0, 63)
    for point, size in zip(found.points, found.sizes, strict=True):
        row = (anchors - torch.from_numpy(point)).abs().sum(dim=1).argmin()
        torch.testing.assert_close(torch.from_numpy(size), output.sizes[0, row].detach())
    inside = (output.points[0] == anchors).all(dim=1)
    clicked = finder.classify(image, anchors[inside][:3])
    torch.testing.assert_close(torch.from_numpy(clicked.sizes), output.sizes[0][inside][:3].detach())
