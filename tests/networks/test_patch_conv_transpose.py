import pytest
import torch
from torch import nn

from nucsam_monai.networks.unsam import PatchConvTranspose2d


def build(kind, *arguments, **options):
    torch.manual_seed(2)
    return kind(*arguments, **options)


@pytest.mark.parametrize("side", [1, 2, 4])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_it_is_pytorch_s_layer_from_the_first_weight_to_the_gradients(side, memory_format):
    patches = build(PatchConvTranspose2d, 6, 5, side)
    layer = build(nn.ConvTranspose2d, 6, 5, kernel_size=side, stride=side)
    assert list(patches.state_dict()) == list(layer.state_dict())
    torch.testing.assert_close(dict(patches.state_dict()), dict(layer.state_dict()), atol=0, rtol=0)

    generator = torch.Generator().manual_seed(3)
    cells = torch.randn(2, 6, 3, 7, generator=generator).contiguous(memory_format=memory_format)
    seen = torch.randn(2, 5, 3 * side, 7 * side, generator=generator)
    results = []
    for module in (patches, layer):
        leaf = cells.clone().requires_grad_()
        output = module(leaf)
        output.backward(seen)
        results.append((output, leaf.grad, module.weight.grad, module.bias.grad))
    torch.testing.assert_close(*results, atol=1e-5, rtol=1e-5)


def test_its_output_has_the_channels_last_in_memory():
    output = PatchConvTranspose2d(6, 5, 2)(torch.randn(2, 6, 3, 7))
    assert output.is_contiguous(memory_format=torch.channels_last)
