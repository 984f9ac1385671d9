import copy

import pytest
import torch
from segment_anything import build_sam_vit_b

from nucsam_monai.networks.sam import SAM, BlockAdapter, ImageEncoder, sam_variant
from nucsam_monai.utils.errors import ConfigurationError
from tests.oracles.official_sam import official_encoder, run_official_encoder


@pytest.fixture
def encoder(small, randomise):
    return randomise(ImageEncoder(small)).eval()


def assert_equal_to_official(encoder, size):
    official = official_encoder(encoder)
    image = torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours = encoder(image).embedding
        expected = run_official_encoder(official, image)
    assert ours.shape == expected.shape
    assert (ours - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_vit_b_equals_the_official_encoder(randomise):
    with torch.device("meta"):
        encoder = ImageEncoder(sam_variant("vit_b"))
    assert_equal_to_official(randomise(encoder), (256, 256))


@pytest.mark.parametrize("size", [(24, 24), (20, 20), (8, 36), (44, 4)])
def test_any_size_equals_the_official_encoder(encoder, size):
    assert_equal_to_official(encoder, size)


def test_state_dict_keys_are_the_official_ones():
    with torch.device("meta"):
        ours, official = SAM(sam_variant("vit_b"), (1024, 1024)), build_sam_vit_b()
    shapes = {name: tensor.shape for name, tensor in official.state_dict().items()}
    assert {name: tensor.shape for name, tensor in ours.state_dict().items()} == shapes


def test_images_of_a_batch_do_not_mix(encoder):
    images = torch.randn(3, 3, 28, 24)
    together = encoder(images).embedding
    for image, embedding in zip(images, together, strict=True):
        torch.testing.assert_close(encoder(image[None]).embedding[0], embedding, atol=1e-5, rtol=1e-5)


def test_levels_are_the_outputs_of_the_feature_blocks_through_the_neck(encoder, small):
    outputs, necks = [], []
    for block in encoder.blocks:
        block.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    encoder.neck.register_forward_hook(lambda module, inputs, output: necks.append(output))
    features = encoder(torch.randn(2, 3, 28, 24), return_levels=True)
    assert len(necks) == 4
    assert features.levels[-1] is features.embedding
    for level, block in zip(features.levels, small.feature_blocks, strict=True):
        torch.testing.assert_close(level, encoder.neck(outputs[block].permute(0, 3, 1, 2)))


def test_levels_are_not_computed_unless_requested(encoder):
    necks = []
    encoder.neck.register_forward_hook(lambda module, inputs, output: necks.append(output))
    assert encoder(torch.randn(1, 3, 24, 24)).levels == ()
    assert len(necks) == 1


def test_interpolation_of_the_position_table_is_an_option(encoder, small):
    bilinear = ImageEncoder(small, pos_embed_mode="bilinear")
    bilinear.load_state_dict(encoder.state_dict())
    own_size, other_size = torch.randn(1, 3, 24, 24), torch.randn(1, 3, 36, 36)
    assert torch.equal(bilinear(own_size).embedding, encoder(own_size).embedding)
    assert not torch.allclose(bilinear(other_size).embedding, encoder(other_size).embedding)
    with pytest.raises(ConfigurationError, match="nearest"):
        ImageEncoder(small, pos_embed_mode="nearest")


def test_sides_that_do_not_fit_the_patch_are_refused(encoder):
    with pytest.raises(ConfigurationError, match="30 x 24 px"):
        encoder(torch.zeros(1, 3, 30, 24))


def test_every_parameter_of_the_compact_variant_gets_a_gradient():
    torch.manual_seed(0)
    encoder = ImageEncoder(sam_variant("vit_tiny"))
    embedding = encoder(torch.randn(1, 3, 96, 64)).embedding
    (embedding * torch.randn_like(embedding)).sum().backward()
    for name, parameter in encoder.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_activation_checkpointing_changes_no_number(encoder):
    plain, recomputing = encoder, copy.deepcopy(encoder)
    recomputing.activation_checkpointing = True
    image = torch.randn(1, 3, 28, 24)
    adapters = [BlockAdapter() for _ in encoder.blocks]
    for network in (plain, recomputing):
        network(image, adapters=adapters).embedding.square().sum().backward()
    for expected, found in zip(plain.parameters(), recomputing.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad)


def test_activation_checkpointing_keeps_fewer_activations(encoder):
    def saved_elements(checkpointing):
        encoder.activation_checkpointing = checkpointing
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: sizes.append(t.numel()) or t, lambda t: t):
            encoder(torch.randn(1, 3, 28, 24))
        return sum(sizes)

    assert saved_elements(True) < 0.5 * saved_elements(False)
