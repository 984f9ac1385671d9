import pytest
import torch
from safetensors import safe_open

from nucsam_monai.networks import UNSAM
from nucsam_monai.networks.sam import load_trained, save_trained
from nucsam_monai.utils.errors import CheckpointError

HEADER = {"method": "unsam", "sam_variant": "micro"}


def assert_same_tensors(module, other):
    ours, theirs = module.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("query_init", ["normal", "sam"])
def test_official_weights_are_taken_over_exactly(official, query_init):
    sam, path = official
    decoder = {"query_init": query_init, "queries_per_domain": {"b": 2}}
    network = UNSAM("micro", ["a", "b"], 64, sam_checkpoint=str(path), decoder=decoder)
    assert_same_tensors(network.image_encoder, sam.image_encoder)
    assert_same_tensors(network.prompt_encoder, sam.prompt_encoder)
    assert_same_tensors(network.decoder.transformer, sam.mask_decoder.transformer)
    assert_same_tensors(network.decoder.output_upscaling, sam.mask_decoder.output_upscaling)
    for mlps in network.decoder.output_hypernetworks_mlps:
        for mlp in mlps:
            assert_same_tensors(mlp, sam.mask_decoder.output_hypernetworks_mlps[0])
    token = sam.mask_decoder.mask_tokens.weight[0]
    copied = [torch.equal(query, token) for queries in network.decoder.queries for query in queries]
    assert copied == [query_init == "sam"] * 3


def test_without_domain_queries_sam_s_mask_token_asks(official):
    sam, path = official
    network = UNSAM("micro", ["a", "b"], 64, sam_checkpoint=str(path), decoder={"domain_queries": False})
    (queries,) = network.decoder.queries
    assert torch.equal(queries, sam.mask_decoder.mask_tokens.weight[:1])


def test_checkpoint_of_another_variant_is_refused(official):
    _, path = official
    with pytest.raises(CheckpointError, match=r"'micro', but 'vit_tiny' was asked for"):
        UNSAM("vit_tiny", ["a"], 64, sam_checkpoint=str(path))


def test_trained_weights_survive_a_round_trip(official, images, tmp_path):
    _, path = official

    def build():
        return UNSAM("micro", ["a", "b"], 64, sam_checkpoint=str(path), encoder={"init": "torch_default"})

    trained = build()
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data.add_(0.05 * torch.randn_like(parameter))
    save_trained(tmp_path / "unsam.safetensors", trained, HEADER)
    restored = build()
    assert not torch.allclose(restored.eval()(images, domain="b"), trained.eval()(images, domain="b"))
    load_trained(tmp_path / "unsam.safetensors", restored, HEADER)
    for domain in ("a", "b"):
        assert torch.equal(restored(images, domain=domain), trained(images, domain=domain))


def test_trained_weights_do_not_contain_the_frozen_encoder(official, tmp_path):
    _, path = official
    network = UNSAM("micro", ["a"], 64, sam_checkpoint=str(path))
    save_trained(tmp_path / "unsam.safetensors", network, HEADER)
    with safe_open(tmp_path / "unsam.safetensors", framework="pt") as file:
        parts = {name.split(".")[0] for name in file.keys()}  # noqa: SIM118
        prompts = {name.split(".")[1] for name in file.keys() if name.startswith("prompt_encoder.")}  # noqa: SIM118
    assert parts == {"bypass", "spgen", "decoder", "prompt_encoder"}
    assert prompts == {"mask_downscaling", "pe_layer"}  # the position code is a buffer, and small
