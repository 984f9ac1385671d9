import pytest
import torch

from nucsam_monai.networks.unet3plus import convolve_enlarged
from tests.oracles.enlarged_convolution import enlarge_then_convolve


@pytest.mark.parametrize("factor", [2, 4, 16])
@pytest.mark.parametrize("sides", [(1, 1), (1, 5), (6, 3), (8, 8)])
def test_it_is_the_convolution_of_the_enlarged_map(factor: int, sides: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(factor)
    inputs = [
        torch.randn(size, generator=generator, dtype=torch.float64, requires_grad=True)
        for size in ((2, 5, *sides), (3, 5, 3, 3), (3,))
    ]
    expected, found = enlarge_then_convolve(*inputs, factor), convolve_enlarged(*inputs, factor)
    torch.testing.assert_close(found, expected)
    weights = torch.randn(expected.shape, generator=generator, dtype=torch.float64)
    for one, other in zip(
        torch.autograd.grad((found * weights).sum(), inputs),
        torch.autograd.grad((expected * weights).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_without_bias_and_in_half_precision() -> None:
    generator = torch.Generator().manual_seed(0)
    features, weight = (
        torch.randn(1, 4, 4, 4, generator=generator),
        torch.randn(2, 4, 3, 3, generator=generator),
    )
    expected = enlarge_then_convolve(features, weight, None, 4)
    torch.testing.assert_close(convolve_enlarged(features, weight, None, 4), expected)
    with torch.autocast("cpu", torch.bfloat16):
        rough = convolve_enlarged(features, weight, None, 4)
    assert rough.dtype == torch.bfloat16
    torch.testing.assert_close(rough.float(), expected, atol=0.1, rtol=0.05)
