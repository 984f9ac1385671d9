import pytest
import torch

from nucsam_monai.networks.sac import UNetGenerator
from nucsam_monai.utils.errors import ConfigurationError


def test_generator_has_the_published_number_of_parameters():
    with torch.device("meta"):
        unet = UNetGenerator()
    assert sum(parameter.numel() for parameter in unet.parameters()) == 7_763_041


def test_levels_have_the_sizes_of_the_paper():
    with torch.device("meta"):
        unet = UNetGenerator()
        seen = []
        for block in (*unet.down, unet.bottom, *unet.up):
            block.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[1:])))
        logits = unet(torch.empty(2, 3, 96, 64))
    assert seen == [
        (32, 96, 64),
        (64, 48, 32),
        (128, 24, 16),
        (256, 12, 8),
        (512, 6, 4),
        (256, 12, 8),
        (128, 24, 16),
        (64, 48, 32),
        (32, 96, 64),
    ]
    assert logits.shape == (2, 1, 96, 64)


def test_every_parameter_takes_part():
    torch.manual_seed(0)
    unet = UNetGenerator(channels=4, levels=2)
    unet(torch.rand(2, 3, 16, 16)).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in unet.parameters())


@torch.no_grad()
def test_finest_skip_joins_the_finest_level():
    torch.manual_seed(0)
    unet = UNetGenerator(channels=4, levels=2).eval()
    unet.up[-1][0].weight[:, :4] = 0  # deaf to what comes from below: four convolutions reach 4 px far
    image = torch.rand(1, 3, 16, 16)
    other = image.clone()
    other[..., 0] += 1
    changed = (unet(image) != unet(other)).any(dim=-2).flatten()
    assert changed.tolist() == [True] * 5 + [False] * 11


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(ConfigurationError, match=r"40 x 64 px, expected sides that are multiples of 16 px"):
        UNetGenerator(channels=2)(torch.zeros(1, 3, 40, 64))
