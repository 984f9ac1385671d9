import json
import logging
from itertools import product

import pytest
import torch

from nucsam_monai.inferers import SemanticInferer, TileInferer
from nucsam_monai.networks import EUNet3P, EUNet3POutput, default_fusion
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD

SMALL = {"filters": [4, 4, 8, 8, 16]}


@pytest.fixture
def build(micro):
    """Build a micro eU-Net3+, the same one each time."""

    def build(*, unet=None, **options):
        torch.manual_seed(0)
        return EUNet3P(micro.name, unet={**SMALL, **(unet or {})}, **options)

    return build


def trained(network):
    return {name: value for name, value in network.named_parameters() if value.requires_grad}


@pytest.mark.parametrize(
    ("options", "parameters"),
    [
        ({"fusion": "none"}, 11_466_626),
        ({"xgfb": {"gate": "released"}}, 12_579_250),
        ({}, 11_466_626 + 1_574_912 + 1_050_624),
        ({"fusion": "concat"}, 11_466_626 + 768 * 512 + 512),
        ({"xgfb": {"kv": "sam"}}, 11_466_626 + 1_574_912 + 1_050_624 + 256 * 512 + 512),
    ],
)
def test_network_has_the_published_numbers_of_parameters(options, parameters):
    with torch.device("meta"):
        network = EUNet3P("vit_b", **options)
    assert sum(value.numel() for value in trained(network).values()) == parameters
    frozen = sum(value.numel() for value in network.parameters() if not value.requires_grad)
    assert frozen == (0 if options == {"fusion": "none"} else 89_670_912)


def test_stages_have_the_shapes_of_the_paper():
    with torch.device("meta"):
        network = EUNet3P("vit_b", advanced=True).eval()
        seen = {}
        for name, part in (("sam", network.image_encoder), ("fusion", network.guidance.fusion)):
            part.register_forward_hook(lambda _, inputs, __, name=name: seen.update({name: inputs}))
        logits = network(torch.empty(1, 3, 256, 256))
    assert seen["sam"][0].shape == (1, 3, 1024, 1024)
    assert [one.shape[1:] for one in seen["fusion"]] == [(512, 16, 16), (256, 16, 16)]
    assert logits.shape == (1, 1, 256, 256)


SWITCHES = [
    *({"xgfb": dict(zip(("gate", "kv", "residual"), choice, strict=True))}
      for choice in product(("glu", "released"), ("gated", "ungated", "sam"), (False, True))),
    *({"fusion": fusion, "advanced": advanced}
      for fusion, advanced in (("none", False), ("concat", False), ("concat", True), ("xgfb", True))),
    *({"unet": choice}
      for choice in ({"activation": "relu"}, {"pool": "max"}, {"dropout": 0.0}, {"deep_supervision": True})),
    *({"sam": {"input_scale": scale}} for scale in (1, 2, 4)),
]  # fmt: skip


@pytest.mark.parametrize("options", SWITCHES, ids=str)
def test_every_switch_runs_and_teaches_every_part(build, images, options):
    network = build(**options).train()
    output = network(images[..., :32])
    assert isinstance(output, EUNet3POutput)
    assert output.logits.shape == (2, 2, 64, 32)
    assert len(output.side_logits) == (4 if network.unet_options.deep_supervision else 0)
    sum(one.square().mean() for one in (output.logits, *output.side_logits)).backward()
    assert all(value.grad is not None for value in trained(network).values())
    assert all(
        value.grad is None for name, value in network.named_parameters() if name not in trained(network)
    )
    with torch.no_grad():
        assert network.eval()(images[..., :32]).shape == (2, 1, 64, 32)


@pytest.mark.parametrize("size", [(32, 32), (48, 80), (64, 16)])
@torch.no_grad()
def test_images_need_not_be_square_or_of_one_size(build, size):
    network = build(advanced=True).eval()
    assert network(torch.zeros(1, 3, *size)).shape == (1, 1, *size)


@torch.no_grad()
def test_nucleus_is_where_its_channel_is_the_greater(build, images):
    network = build().eval()
    channels = network.unet.decode(network.unet.encode(network.to_rgb(images), network._guide(images, None)))[
        0
    ]
    found = network(images)
    torch.testing.assert_close(torch.sigmoid(found), channels.softmax(dim=1)[:, 1:])
    assert torch.equal(found[:, 0] > 0, channels.argmax(dim=1) == 1)


@torch.no_grad()
def test_unet_sees_rgb_from_0_to_1_and_sam_the_enlarged_normalised_image(build):
    network = build().eval()
    seen = []
    for part in (network.unet.stages[0], network.image_encoder.patch_embed):
        part.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rgb = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SAM_PIXEL_MEAN, SAM_PIXEL_STD))
    network((255 * rgb - mean) / std)
    by_size = {one.shape[-1]: one for one in seen}
    torch.testing.assert_close(by_size[32], rgb)
    enlarged = torch.nn.functional.interpolate(255 * rgb, size=(128, 128), mode="bilinear")
    torch.testing.assert_close(by_size[128], (enlarged - mean) / std, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_sam_guides_and_images_of_a_batch_do_not_mix(build, images):
    network = build(advanced=True).eval()
    features = network.sam_features(images)
    together = network(images)
    torch.testing.assert_close(network(images, features=features), together)
    assert not torch.allclose(network(images, features=features.flip(0)), together)
    for one in range(2):
        torch.testing.assert_close(network(images[one : one + 1]), together[one : one + 1])


def test_features_that_cannot_belong_to_the_images_are_refused(build, images):
    network = build()
    with pytest.raises(ConfigurationError, match=r"features: found .*, expected \(2, 32, 16, 16\)"):
        network(images, features=torch.zeros(2, 32, 4, 4))
    without = build(fusion="none")
    with pytest.raises(ConfigurationError, match="found features of SAM"):
        without(images, features=torch.zeros(2, 32, 16, 16))
    with pytest.raises(ConfigurationError, match="has no SAM"):
        without.sam_features(images)


@torch.no_grad()
def test_tiles_of_a_larger_image_make_a_probability(build):
    image = torch.randn(1, 3, 40, 50, generator=torch.Generator().manual_seed(0))
    found = SemanticInferer(TileInferer(32), precision="fp32")(image, build().eval())
    assert found.shape == (1, 1, 40, 50)
    assert 0 < found.min() < found.max() < 1


def test_network_can_be_traced(build, images):
    network = build(advanced=True).eval()
    images = images[..., :32]
    with torch.no_grad():
        traced = torch.jit.trace(network, images, check_trace=False)
        torch.testing.assert_close(traced(images.flip(0)), network(images.flip(0)), rtol=1e-4, atol=1e-5)


def test_random_sam_is_announced_and_leaves_the_generator_of_random_numbers_alone(build, caplog):
    with caplog.at_level(logging.WARNING):
        build(fusion="none")
        assert not caplog.records
        state = torch.get_rng_state()
        network = EUNet3P("micro", unet=SMALL)
        assert "a random SAM guides the network" in caplog.text
    torch.set_rng_state(state)
    torch.rand(1)
    other = EUNet3P("micro", unet=SMALL)
    assert all(torch.equal(*pair) for pair in zip(network.image_encoder.parameters(),
                                                  other.image_encoder.parameters(), strict=True))  # fmt: skip
    assert not torch.equal(network.unet.head.weight, other.unet.head.weight)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fusion": "add"}, "fusion 'add': expected one of xgfb, concat, none"),
        ({"fusion": "none", "advanced": True}, "advanced true: found fusion 'none'"),
        ({"xgfb": {"gate": "relu"}}, r"xgfb.gate 'relu': expected one of \['glu', 'released'\]"),
        ({"xgfb": {"kv": "h5"}}, "xgfb.kv 'h5': expected one of"),
        ({"xgfb": {"residual": 1}}, "xgfb.residual 1: expected bool"),
        ({"unet": {"pool": "blur"}}, "unet.pool 'blur': expected one of"),
        ({"unet": {"width": 2}}, r"unet: unknown option \['width'\]"),
        ({"sam": {"input_scale": 3}}, "sam.input_scale 3: expected a divisor of the 16 px"),
        ({"sam": {"input_scale": 0}}, "sam.input_scale 0: expected 1 or more"),
    ],
)
def test_wrong_options_are_refused_and_the_permitted_named(build, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(**options)


def test_images_of_other_sides_are_refused_before_sam_works(build):
    with pytest.raises(ConfigurationError, match=r"found 40 x 64 px, expected .* multiples of 16 px"):
        build()(torch.zeros(1, 3, 40, 64))


def test_options_can_come_from_a_configuration_file(micro, tmp_path):
    path = tmp_path / "train.json"
    definition = {
        "sam_variant": micro.name,
        "fusion": "xgfb",
        "advanced": False,
        "unet": {**SMALL, "activation": "glu", "pool": "maxblur", "dropout": 0.3, "deep_supervision": False},
        "xgfb": {"gate": "glu", "kv": "gated", "residual": False},
        "sam": {"input_scale": 4},
        "sam_checkpoint": None,
        "embedding_cache": None,
    }
    path.write_text(json.dumps(definition))
    header = EUNet3P(**json.loads(path.read_text())).header
    assert header["method"] == "eunet3p"
    assert header["sam_variant"] == micro.name
    assert json.loads(header["options"]) == {
        "fusion": "xgfb",
        "advanced": False,
        "unet": {**SMALL, "activation": "glu", "pool": "maxblur", "deep_supervision": False},
        "xgfb": {"gate": "glu", "kv": "gated", "residual": False},
        "sam": {"input_scale": 4},
    }


def test_guidance_is_the_default_where_there_is_a_sam():
    assert default_fusion("sam.pth") == "xgfb"
    assert default_fusion(None) == "none"


def test_a_third_channel_is_the_distance_map(build, images):
    network, plain = build(fusion="none", outputs=2), build(fusion="none")
    output = network.train()(images)
    assert output.logits.shape == (2, 3, 64, 64)
    output.logits[:, 2].sum().backward()
    head = network.unet.head.weight.grad.abs().amax(dim=(1, 2, 3)) > 0
    assert head.tolist() == [False, False, True]
    network.eval()
    with torch.no_grad():
        network.unet.head.weight[:2], network.unet.head.bias[:2] = (
            plain.unet.head.weight,
            plain.unet.head.bias,
        )
        kept = {key: value for key, value in network.unet.state_dict().items() if "head" not in key}
        plain.unet.load_state_dict({**plain.unet.state_dict(), **kept})
        network.unet.head.weight[2], network.unet.head.bias[2] = 0.0, 0.7
        found, expected = network(images), plain.eval()(images)
    assert found.shape == (2, 2, 64, 64)
    torch.testing.assert_close(found[:, :1], expected)
    torch.testing.assert_close(found[:, 1:], torch.full_like(expected, 0.7))
    assert json.loads(network.header["options"])["outputs"] == 2
    assert "outputs" not in json.loads(plain.header["options"])


def test_other_numbers_of_outputs_are_refused(build):
    with pytest.raises(ConfigurationError, match="outputs 3: expected 1, or 2 with the distance map"):
        build(outputs=3)
