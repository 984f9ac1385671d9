import numpy as np
import pytest
import torch
from scipy.ndimage import convolve

from nucsam_monai.networks.unet3plus import (
    ORIGINAL_UNET3PLUS,
    FullScaleNode,
    MaxBlurPool,
    UNet3Plus,
    UNet3PlusOptions,
)
from nucsam_monai.utils.errors import ConfigurationError

SMALL = {"filters": (4, 8, 16), "dropout": 0.0}


def small(out_channels=1, **options):
    torch.manual_seed(0)
    return UNet3Plus(3, out_channels, UNet3PlusOptions(**{**SMALL, **options}))


def draw(*shape):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("options", "out_channels", "parameters"),
    [
        (UNet3PlusOptions(), 2, 11_466_626),
        (UNet3PlusOptions(activation="relu"), 2, 6_750_434),
        (UNet3PlusOptions(pool="max", dropout=0.0), 2, 11_466_626),
        (ORIGINAL_UNET3PLUS, 1, 26_971_777),
    ],
)
def test_networks_have_the_published_numbers_of_parameters(options, out_channels, parameters):
    with torch.device("meta"):
        unet = UNet3Plus(3, out_channels, options)
    assert sum(parameter.numel() for parameter in unet.parameters()) == parameters


def test_levels_have_the_sizes_of_the_paper():
    with torch.device("meta"):
        unet = UNet3Plus(3, 2, UNet3PlusOptions(deep_supervision=True)).train()
        maps = unet.encode(torch.empty(1, 3, 256, 192))
        seen = []
        for node in unet.nodes:
            node.register_forward_hook(lambda *args: seen.append(tuple(args[2].shape[1:])))
        outputs = unet.decode(maps)
    sizes = [(256, 192), (128, 96), (64, 48), (32, 24), (16, 12)]
    assert [tuple(one.shape[1:]) for one in maps] == [(32 * 2**k, *size) for k, size in enumerate(sizes)]
    assert seen == [(160, *size) for size in reversed(sizes[:4])]
    assert [tuple(one.shape) for one in outputs] == [(1, 2, 256, 192)] * 5


def test_pool_takes_maxima_and_blurs_them():
    image = draw(1, 2, 8, 6)
    maxima = image[0].reshape(2, 4, 2, 3, 2).amax(dim=(2, 4)).double().numpy()
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    expected = np.stack([convolve(one, kernel, mode="constant") for one in maxima])
    np.testing.assert_allclose(MaxBlurPool()(image)[0], expected, rtol=1e-6)
    assert not list(MaxBlurPool().parameters())
    assert not MaxBlurPool().state_dict()


@torch.no_grad()
def test_node_brings_every_level_to_its_resolution():
    node = FullScaleNode(1, [1, 1, 1], skip_channels=1).eval()
    for unit in (*node.skips, node.merge):  # let every convolution pass its input on
        torch.nn.init.dirac_(unit[0].weight)
        unit[0].bias.zero_()
    maps = [draw(1, 1, 8, 8), draw(1, 1, 4, 4), draw(1, 1, 2, 2)]
    found = node(maps)[0]
    torch.testing.assert_close(found[0], maps[0].reshape(4, 2, 4, 2).amax(dim=(1, 3)), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1], maps[1][0, 0], rtol=1e-4, atol=1e-4)
    weights = np.array([[1, 0], [0.75, 0.25], [0.25, 0.75], [0, 1]])
    expected = weights @ maps[2][0, 0].double().numpy() @ weights.T
    np.testing.assert_allclose(found[2], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("activation", ["glu", "relu"])
@pytest.mark.parametrize("pool", ["maxblur", "max"])
@pytest.mark.parametrize("deep_supervision", [False, True])
def test_every_parameter_takes_part(activation, pool, deep_supervision):
    unet = small(activation=activation, pool=pool, deep_supervision=deep_supervision).train()
    outputs = unet.decode(unet.encode(draw(2, 3, 16, 24)))
    assert len(outputs) == (3 if deep_supervision else 1)
    sum(output.square().mean() for output in outputs).backward()
    for name, parameter in unet.named_parameters():
        assert parameter.grad is not None, name
    weights = [unit for name, unit in unet.named_parameters() if name.endswith("0.weight")]
    assert all(weight.grad.abs().max() > 0 for weight in weights)


def test_units_gate_one_half_of_their_channels_by_the_other():
    unit = small().stages[0][0].eval()
    image = draw(1, 3, 8, 8)
    linear, gate = unit[1](unit[0](image)).chunk(2, dim=1)
    torch.testing.assert_close(unit(image), linear * torch.sigmoid(gate))


def test_guide_changes_what_the_next_level_and_the_decoder_see():
    unet = small().eval()
    image = draw(1, 3, 16, 16)
    plain = unet.encode(image)
    silenced = unet.encode(image, lambda level, features: features * (level != 0))
    assert not silenced[0].any()
    assert not torch.equal(plain[1], silenced[1])
    assert torch.equal(unet.encode(image, lambda level, features: features)[2], plain[2])


def test_dropout_leaves_out_channels_of_the_coarsest_level_in_training_alone():
    unet = small(dropout=0.5)
    image = draw(1, 3, 16, 16)
    seen = []
    unet.nodes[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0][-1]))
    torch.manual_seed(0)
    unet.train()(image)
    silent = ~seen[0].any(dim=-1).any(dim=-1)[0]
    assert 0 < silent.sum() < 16
    assert torch.equal(unet.eval()(image), unet(image))


@pytest.mark.parametrize("side", [20, 16])
def test_images_that_cannot_be_halved_are_refused(side):
    with pytest.raises(ConfigurationError, match=r"image: found \d+ x 18 px, expected .* multiples of 4 px"):
        small()(torch.zeros(1, 3, side, 18))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"filters": [8]}, r"unet.filters \[8\]: expected"),
        ({"filters": [8, 0]}, "unet.filters"),
        ({"filters": "32"}, "unet.filters"),
        ({"dropout": 1.0}, "unet.dropout 1.0: expected a share"),
    ],
)
def test_impossible_sizes_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        UNet3PlusOptions(**options)
