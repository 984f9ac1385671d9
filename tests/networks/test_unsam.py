import itertools

import pytest
import torch

from nucsam_monai.networks import UNSAM, UNSAMOutput
from nucsam_monai.networks.sam import ImageEncoder, PromptEncoder
from nucsam_monai.utils.errors import ConfigurationError


def shapes_at(network, image):
    """Run a network and return the output shape of its parts by name."""
    parts = {
        "tokens": network.image_encoder.patch_embed,
        "last_block": network.image_encoder.blocks[-1],
        "neck": network.image_encoder.neck,
        "hint_logits": network.spgen,
        "hint": network.prompt_encoder.mask_downscaling,
        # The decoder computes its layers cell by cell; these are the last of each part.
        "queries": network.decoder.transformer.norm_final_attn,
        "keys": network.decoder.transformer.layers[-1].norm4,
        "upscaled": network.decoder.output_upscaling[-1],
    }
    seen = {}
    for name, part in parts.items():
        part.register_forward_hook(lambda *args, name=name: seen.update({name: tuple(args[2].shape)}))
    network.decoder.register_forward_hook(lambda *args: seen.update(masks=tuple(args[2].shape)))
    seen["output"] = tuple(network.eval()(image, domain=network.domains[-1]).shape)
    return seen


def test_stages_have_the_shapes_of_the_paper(monkeypatch):
    # autocast, which the prompt encoder turns off inside, does not know the meta device
    monkeypatch.setattr(PromptEncoder, "_get_device", lambda self: torch.device("cpu"))
    with torch.device("meta"):
        network = UNSAM("vit_b", ["dsb", "segpc"], decoder={"queries_per_domain": {"segpc": 2}})
        seen = shapes_at(network, torch.empty(1, 3, 1024, 1024))
    assert seen == {
        "tokens": (1, 64, 64, 768),
        "last_block": (1, 64, 64, 768),
        "neck": (1, 256, 64, 64),
        "hint_logits": (1, 1, 256, 256),
        "hint": (1, 256, 64, 64),
        "queries": (1, 2, 256),
        "keys": (1, 4096, 256),
        "upscaled": (1, 4096, 4, 4, 32),  # (1, 32, 256, 256) with the 16 pixels of each cell together
        "masks": (1, 2, 256, 256),
        "output": (1, 2, 1024, 1024),
    }


@pytest.mark.parametrize(("bypass", "spgen", "queries"), itertools.product([True, False], repeat=3))
def test_every_ablation_runs_and_lacks_what_it_switches_off(micro_unsam, images, bypass, spgen, queries):
    network = micro_unsam(
        encoder={"bypass": bypass},
        spgen={"enabled": spgen},
        decoder={"domain_queries": queries, "queries_per_domain": {"c": 2}},
    )
    for domain, masks in (("a", 1), ("c", 2)):
        output = network.train()(images, domain=domain)
        assert output.mask_logits.shape == (2, masks, 64, 64)
        assert output.hint_logits is None if not spgen else output.hint_logits.shape == (2, 1, 16, 16)
        assert network.eval()(images, domain=domain).shape == (2, masks, 64, 64)
    assert (network.bypass is not None) == bypass
    assert (network.spgen is not None) == spgen
    assert [len(own) for own in network.decoder.queries] == ([1, 1, 2] if queries else [2])


@pytest.mark.parametrize(
    ("variant", "inject"), itertools.product(["pyramid", "released"], ["mask_prompt", "add"])
)
def test_hint_logits_have_the_size_that_the_injection_needs(micro_unsam, images, variant, inject):
    network = micro_unsam(spgen={"variant": variant, "inject": inject, "tau": 0.5}).train()
    output = network(images, domain="b")
    assert output.mask_logits.shape == (2, 1, 64, 64)
    assert output.hint_logits.shape == ((2, 1, 16, 16) if inject == "mask_prompt" else (2, 1, 4, 4))


def test_training_returns_what_the_loss_needs_and_evaluation_a_tensor(micro_unsam, images):
    network = micro_unsam()
    trained = network.train()(images)
    assert isinstance(trained, UNSAMOutput)
    evaluated = network.eval()(images)
    assert type(evaluated) is torch.Tensor
    torch.testing.assert_close(evaluated, trained.mask_logits)


def test_images_need_not_be_square_or_of_the_named_size(micro_unsam):
    assert micro_unsam().eval()(torch.zeros(1, 3, 96, 64)).shape == (1, 1, 96, 64)


def test_bypass_that_starts_at_zero_leaves_sam_as_it_is(micro_unsam, images):
    for init in ("zero_last", "torch_default"):
        network = micro_unsam(encoder={"init": init}).requires_grad_(False)
        plain = network.image_encoder(images).embedding
        adapted = network.image_encoder(images, adapters=network.bypass.of_domain(1)).embedding
        assert torch.equal(plain, adapted) == (init == "zero_last")


def test_without_bypass_all_domains_share_the_plain_encoder(micro_unsam, images):
    network = micro_unsam(encoder={"bypass": False}, decoder={"domain_queries": False}).eval()
    assert torch.equal(network(images, domain="a"), network(images, domain="c"))


def test_domains_have_answers_of_their_own(micro_unsam, images):
    network = micro_unsam(encoder={"init": "torch_default"}).eval()
    a, b, default = network(images, domain="a"), network(images, domain="b"), network(images)
    assert not torch.allclose(a, b)
    assert torch.equal(a, default)


def test_empty_hint_is_a_constant_map(micro_unsam, images):
    network = micro_unsam(spgen={"tau": 1.0})
    features = network.image_encoder(images, return_levels=True)
    embedding, logits = network._inject_hint(features)
    hint = embedding - features.embedding
    assert torch.sigmoid(logits).max() < 1
    torch.testing.assert_close(hint, hint[:1, :, :1, :1].expand_as(hint), atol=1e-5, rtol=1e-4)
    assert hint.abs().max() > 0
    assert network.eval()(images).isfinite().all()


def test_added_hint_shifts_all_channels_alike(micro_unsam, images):
    network = micro_unsam(spgen={"inject": "add", "tau": 0.5})
    features = network.image_encoder(images, return_levels=True)
    embedding, logits = network._inject_hint(features)
    expected = torch.where(torch.sigmoid(logits) >= 0.5, logits, 0.0)
    torch.testing.assert_close(embedding, features.embedding + expected)


def test_without_spgen_sam_s_no_mask_embedding_is_added(micro_unsam, images):
    network = micro_unsam(spgen={"enabled": False})
    features = network.image_encoder(images)
    embedding, logits = network._inject_hint(features)
    assert logits is None
    no_mask = network.prompt_encoder.no_mask_embed.weight[0, :, None, None]
    torch.testing.assert_close(embedding, features.embedding + no_mask)


def test_points_prompt_the_decoder(micro_unsam, images):
    network = micro_unsam(spgen={"enabled": False}).eval()
    points = torch.tensor([[[8.0, 8.0], [40.0, 20.0]]]).repeat(2, 1, 1)
    labels = torch.ones(2, 2)
    padded = (
        torch.cat([points, torch.full((2, 1, 2), 9.0)], dim=1),
        torch.cat([labels, -torch.ones(2, 1)], dim=1),
    )
    prompted = network(images, points=(points, labels))
    assert prompted.shape == (2, 1, 64, 64)
    assert not torch.allclose(prompted, network(images))
    assert not torch.allclose(prompted, network(images, points=(points.flip(-1), labels)))
    elsewhere = (padded[0].clone(), padded[1])
    elsewhere[0][:, -1] += 30  # where padding lies does not matter
    torch.testing.assert_close(network(images, points=padded), network(images, points=elsewhere))


def test_traced_network_gives_the_same_masks(micro_unsam, images):
    network = micro_unsam(encoder={"init": "torch_default"}).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, images, check_trace=False)
        torch.testing.assert_close(traced(images.flip(0)), network(images.flip(0)))


def test_activation_checkpointing_changes_no_gradient(micro_unsam, images):
    gradients = []
    for checkpointing in (False, True):
        network = micro_unsam(encoder={"activation_checkpointing": checkpointing, "init": "torch_default"})
        network.train()(images, domain="b").mask_logits.square().mean().backward()
        gradients.append(network.bypass.common[0][0][0].weight.grad)
    torch.testing.assert_close(*gradients)
    assert gradients[0].abs().max() > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"encoder": {"by_pass": True}}, r"encoder: unknown option \['by_pass'\]; permitted .*'bypass'"),
        ({"encoder": {"trainable": "none"}}, r"encoder.trainable 'none': .*'bypass', 'all'"),
        ({"encoder": {"init": "zero"}}, r"encoder.init 'zero': .*'zero_last', 'torch_default'"),
        ({"encoder": {"common_scope": "x"}}, r"encoder.common_scope 'x': .*'shared', 'per_domain'"),
        ({"encoder": {"bypass": "false"}}, r"encoder.bypass 'false': expected bool"),
        ({"encoder": {"scale": None}}, r"encoder.scale None: expected float"),
        ({"spgen": {"variant": "fpn"}}, r"spgen.variant 'fpn': .*'pyramid', 'released'"),
        ({"spgen": {"inject": "mul"}}, r"spgen.inject 'mul': .*'mask_prompt', 'add'"),
        ({"spgen": {"channels": 8.0}}, r"spgen.channels 8.0: expected int"),
        ({"spgen": {"tau": 1.5}}, r"spgen.tau 1.5: expected a probability"),
        ({"decoder": {"query_init": "zero"}}, r"decoder.query_init 'zero': .*'normal', 'sam'"),
        ({"decoder": {"queries_per_domain": 0}}, r"queries_per_domain: found 0"),
        ({"decoder": {"queries_per_domain": {"a": 0}}}, r"queries_per_domain: found \{'a': 0\}"),
        ({"decoder": {"queries_per_domain": {"d": 2}}}, r"found \{'d': 2\}.* domains a, b, c"),
        ({"decoder": {"queries_per_domain": "2"}}, r"queries_per_domain: found '2'"),
    ],
)
def test_wrong_options_are_refused_and_the_permitted_named(micro_unsam, options, message):
    with pytest.raises(ConfigurationError, match=message):
        micro_unsam(**options)


@pytest.mark.parametrize("domains", [[], ["a", "a"], "dsb"])
def test_wrong_lists_of_domains_are_refused(micro, domains):
    with pytest.raises(ConfigurationError, match="list of different names"):
        UNSAM(micro.name, domains, image_size=64)


def test_unknown_domains_variants_and_sizes_are_refused(micro, micro_unsam, images):
    with pytest.raises(ConfigurationError, match=r"domain 'd': this network knows a, b, c"):
        micro_unsam()(images, domain="d")
    with pytest.raises(ConfigurationError, match=r"'macro' is unknown. Permitted: .*micro"):
        UNSAM("macro", ["a"])
    with pytest.raises(ConfigurationError, match="multiples of 16 px"):
        UNSAM(micro.name, ["a"], image_size=65)


def test_encoder_keeps_sam_s_keys(micro, micro_unsam):
    assert list(micro_unsam().image_encoder.state_dict()) == list(ImageEncoder(micro).state_dict())
