import torch
from torch.nn import functional as F

from nucsam_monai.networks.prompter import FeaturePyramid


def test_pyramid_equals_its_definition_on_sizes_that_do_not_halve():
    torch.manual_seed(0)
    sizes, widths = [(11, 9), (5, 4), (2, 2), (1, 1)], [3, 4, 5, 6]
    stages = [torch.randn(2, width, *size) for width, size in zip(widths, sizes, strict=True)]
    pyramid = FeaturePyramid(widths, channels=7, levels=2)
    sums = [None] * 4
    for level in (3, 2, 1, 0):
        sums[level] = pyramid.lateral[level](stages[level])
        if level < 3:
            sums[level] = sums[level] + F.interpolate(sums[level + 1], size=sizes[level], mode="nearest")
    found = pyramid(stages)
    assert [tuple(map_.shape) for map_ in found] == [(2, 7, 11, 9), (2, 7, 5, 4)]
    for level in range(2):
        torch.testing.assert_close(found[level], pyramid.output[level](sums[level]))


def test_the_coarsest_stage_reaches_the_finest_map():
    pyramid = FeaturePyramid([2, 2, 2, 2], channels=4, levels=1)
    stages = [torch.zeros(1, 2, 8 // 2**level, 8 // 2**level, requires_grad=True) for level in range(4)]
    (finest,) = pyramid(stages)
    finest.sum().backward()
    assert all(stage.grad.abs().sum() > 0 for stage in stages)


def test_weights_start_as_xavier_and_biases_at_zero():
    pyramid = FeaturePyramid([64], channels=64, levels=1)
    bound = (6 / (64 + 64)) ** 0.5
    assert 0.9 * bound < pyramid.lateral[0].weight.abs().max() <= bound
    assert not pyramid.lateral[0].bias.any()
    assert not pyramid.output[0].bias.any()
