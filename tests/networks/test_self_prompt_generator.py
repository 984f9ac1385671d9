import pytest
import torch
from torch.nn import functional as F

from nucsam_monai.networks.unsam import (
    PyramidSelfPromptGenerator,
    ReleasedSelfPromptGenerator,
    binary_hint,
    thresholded_hint,
)

LEVELS = [torch.randn(2, 32, 4, 6, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]


@pytest.fixture(params=["pyramid", "released"])
def generator(request):
    torch.manual_seed(0)
    return (
        PyramidSelfPromptGenerator(32, 8) if request.param == "pyramid" else ReleasedSelfPromptGenerator(32)
    )


def test_hint_has_four_times_the_token_grid(generator):
    assert generator(LEVELS).shape == (2, 1, 16, 24)


def test_odd_token_grids_are_fine(generator):
    assert generator([torch.zeros(1, 32, 5, 3)] * 4).shape == (1, 1, 20, 12)


def test_every_parameter_learns(generator):
    generator(LEVELS).square().sum().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in generator.parameters())


def test_pyramid_uses_all_levels_and_the_released_form_the_last(generator):
    levels = [level.clone().requires_grad_() for level in LEVELS]
    generator(levels).square().sum().backward()
    used = [level.grad is not None and bool(level.grad.abs().max() > 0) for level in levels]
    assert used == ([True] * 4 if isinstance(generator, PyramidSelfPromptGenerator) else [False] * 3 + [True])


def test_pyramid_puts_shallow_levels_on_fine_scales():
    pyramid = PyramidSelfPromptGenerator(32, 8)
    shapes = [tuple(head(level).shape[1:]) for head, level in zip(pyramid.heads, LEVELS, strict=True)]
    assert shapes == [(8, 16, 24), (8, 8, 12), (8, 4, 6), (8, 2, 3)]


def test_pyramid_refuses_a_wrong_number_of_levels():
    with pytest.raises(ValueError, match="zip"):
        PyramidSelfPromptGenerator(32, 8)(LEVELS[:3])


def test_pyramid_joins_from_coarse_to_fine():
    torch.manual_seed(0)
    pyramid = PyramidSelfPromptGenerator(32, 8)
    quad, double, same, half = (head(level) for head, level in zip(pyramid.heads, LEVELS, strict=True))

    def step(coarse, fine, index):
        size = fine.shape[-2:]
        return pyramid.smooths[index](
            F.interpolate(coarse, size=size, mode="bilinear") + pyramid.laterals[index](fine)
        )

    joined = step(step(step(half, same, 0), double, 1), quad, 2)
    torch.testing.assert_close(pyramid(LEVELS), pyramid.head(joined))


def test_released_form_sums_four_branches():
    torch.manual_seed(0)
    released = ReleasedSelfPromptGenerator(32)
    image = LEVELS[-1]

    def enlarged(logits):
        return F.interpolate(logits, size=(16, 24), mode="bilinear", align_corners=True)

    pooled = image.reshape(2, 32, 2, 2, 3, 2).amax((3, 5))
    fine = released.fourfold(image)
    assert fine.shape == (2, 1, 16, 24)
    expected = (
        enlarged(released.coarse[1](pooled))
        + enlarged(released.identity(image))
        + enlarged(released.twice(image))
        + fine
    )
    torch.testing.assert_close(released([image]), expected)


def test_released_form_has_the_sizes_of_the_published_weights():
    shapes = {
        name: tuple(tensor.shape) for name, tensor in ReleasedSelfPromptGenerator(256).state_dict().items()
    }
    assert shapes["coarse.1.weight"] == shapes["identity.weight"] == (1, 256, 1, 1)
    assert shapes["twice.0.weight"] == shapes["fourfold.0.weight"] == (256, 64, 2, 2)
    assert shapes["twice.1.weight"] == (1, 64, 1, 1)
    assert shapes["fourfold.3.weight"] == (64, 16, 2, 2)
    assert shapes["fourfold.4.weight"] == (1, 16, 1, 1)


def test_hints_threshold_the_probability():
    logits = torch.tensor([-5.0, 0.0, 2.9, 3.0, 9.0])  # sigmoid(2.944) = 0.95
    assert binary_hint(logits, 0.95).tolist() == [0, 0, 0, 1, 1]
    assert thresholded_hint(logits, 0.95).tolist() == [0, 0, 0, 3, 9]
    assert binary_hint(logits, 0.5).tolist() == [0, 1, 1, 1, 1]
    assert binary_hint(logits.half(), 0.95).dtype == torch.float16


def test_only_thresholded_logits_pass_a_gradient():
    logits = torch.tensor([-5.0, 9.0], requires_grad=True)
    assert not binary_hint(logits, 0.95).requires_grad
    thresholded_hint(logits, 0.95).sum().backward()
    assert logits.grad.tolist() == [0, 1]
