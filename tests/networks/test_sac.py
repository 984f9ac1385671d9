import json
import logging

import pytest
import torch

from nucsam_monai.networks import SAC, SACOutput
from nucsam_monai.networks.sam import PromptEncoder
from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD

CLICKS = (torch.tensor([[[10.0, 20.0]], [[30.0, 8.0]]]), torch.ones(2, 1, dtype=torch.long))
TRAINED = {"sam": {"train_prompt_encoder": True}}


def count(module):
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def propose(network, logits):
    """Replace what the network's generator says."""
    network.generator.unet.register_forward_hook(lambda *args: logits.expand_as(args[2]))


@pytest.mark.parametrize(
    ("options", "sam", "generator"),
    [
        ({"adapter": "lora"}, 56_493_360, 7_763_041),
        ({"adapter": "msa"}, 56_595_760, 7_763_041),
        ({"adapter": "none"}, 12_746_129 - 7_763_041, 7_763_041),
        ({"adapter": "lora", "generator": {"n_points": 0}}, 56_493_360, 0),
        ({"adapter": "lora", "lora": {"rank": 4}}, 655_360 + 4_058_340 + 6_220, 7_763_041),
        ({"adapter": "head"}, 4_058_340 + 6_220, 7_763_041),
        ({"adapter": "full"}, 641_090_608, 7_763_041),
    ],
)
def test_large_sam_has_the_parameter_counts_of_the_paper(options, sam, generator):
    with torch.device("meta"):
        network = SAC("vit_h", **options, **TRAINED)
        frozen_prompts = SAC("vit_h", **options)
    assert count(network) == sam + generator
    assert (0 if network.generator is None else count(network.generator)) == generator
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    if options["adapter"] in ("lora", "msa"):
        assert frozen == 637_026_048
    difference = count(network) - count(frozen_prompts)
    assert difference == (0 if options["adapter"] == "full" else 6_220)


def test_stages_have_the_shapes_of_the_paper(monkeypatch):
    # autocast, which the prompt encoder turns off inside, does not know the meta device
    monkeypatch.setattr(PromptEncoder, "_get_device", lambda self: torch.device("cpu"))
    with torch.device("meta"):
        network = SAC("vit_b", generator={"n_points_test": 0}).eval()
    image = torch.empty(1, 3, 1024, 1024, device="meta")
    points = torch.empty(1, 3, 2, device="meta"), torch.empty(1, 3, device="meta")
    assert network.generator(image).shape == (1, 1, 1024, 1024)
    prompts, _ = network.prompts(image, points)
    assert network.decode(image, prompts).shape == (1, 1, 256, 256)


@pytest.mark.parametrize("adapter", ["none", "lora", "msa", "head", "full", "samus"])
@pytest.mark.parametrize(("n_points", "selection"), [(0, "O"), (1, "O"), (3, "R")])
def test_every_ablation_runs(micro_sac, images, adapter, n_points, selection):
    network = micro_sac(adapter=adapter, generator={"n_points": n_points, "selection": selection, "tau": 0.5})
    output = network.train()(images, points=CLICKS)
    assert isinstance(output, SACOutput)
    side = 32 if adapter == "samus" else 16
    assert output.mask_logits.shape == (2, 1, side, side)
    assert output.prompts.coordinates.shape == (2, 1 + 2 * n_points, 2)
    assert (output.generator_logits is None) == (n_points == 0)
    assert type(network.eval()(images)) is torch.Tensor
    assert network(images).shape == (2, 1, 64, 64)


@pytest.mark.parametrize("n_points", [8, 16, 256])
def test_many_points_make_one_mask(micro_sac, images, n_points):
    network = micro_sac(generator={"n_points": n_points, "selection": "R"}).eval()
    propose(network, torch.linspace(-9, 9, 64).expand(64, 64))
    prompts, _ = network.prompts(images, CLICKS)
    assert (prompts.labels == 1).sum(dim=1).tolist() == [n_points + 1] * 2
    assert (prompts.labels == 0).sum(dim=1).tolist() == [n_points] * 2
    assert network(images, points=CLICKS).shape == (2, 1, 64, 64)


def test_points_are_where_the_generator_sees_nuclei(micro_sac, images):
    logits = torch.full((1, 1, 64, 64), -9.0)
    logits[..., 40:49, 8:17] = 9.0  # rows 40 to 48, columns 8 to 16
    network = micro_sac(generator={"n_points": 1}).eval()
    propose(network, logits)
    (coordinates, labels), _ = network.prompts(images)
    assert labels.tolist() == [[1, 0]] * 2
    assert coordinates[:, 0].tolist() == [[12.0, 44.0]] * 2


def test_points_of_a_smaller_map_refer_to_pixels_of_the_image(micro_sac):
    network = micro_sac(generator={"n_points": 1, "input_size": 32}).eval()
    logits = torch.full((1, 1, 32, 32), -9.0)
    logits[..., 20, 4] = 9.0
    propose(network, logits)
    prompts, found = network.prompts(torch.zeros(1, 3, 64, 128))
    assert found.shape == (1, 1, 32, 32)
    assert prompts.coordinates[0, 0].tolist() == [4 * 4 + 1.5, 20 * 2 + 0.5]


def test_generator_sees_rgb_from_0_to_1(micro_sac):
    network = micro_sac().eval()
    seen = []
    network.generator.unet.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    rgb = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (SAM_PIXEL_MEAN, SAM_PIXEL_STD))
    network((255 * rgb - mean) / std)
    torch.testing.assert_close(seen[0], rgb)


def test_users_points_prompt_the_mask(micro_sac, images):
    network = micro_sac(generator={"n_points": 0}).eval()
    prompted = network(images, points=CLICKS)
    assert not torch.allclose(prompted, network(images))
    assert not torch.allclose(prompted, network(images, points=(CLICKS[0], 0 * CLICKS[1])))
    padding = (torch.full((2, 1, 2), 9.0), torch.full((2, 1), -1))
    padded = [torch.cat(pair, dim=1) for pair in zip(CLICKS, padding, strict=True)]
    elsewhere = [padded[0] * torch.tensor([[[1.0], [3.0]]]), padded[1]]
    torch.testing.assert_close(network(images, points=padded), network(images, points=elsewhere))


def test_images_of_a_batch_do_not_mix(micro_sac, images):
    network = micro_sac(generator={"n_points": 3, "selection": "R", "tau": 0.5}).eval()
    together = network(images, points=CLICKS)
    for image in (0, 1):
        own = slice(image, image + 1)
        alone = network(images[own], points=(CLICKS[0][own], CLICKS[1][own]))
        torch.testing.assert_close(alone, together[own])


def test_points_vary_in_training_and_stay_in_evaluation(micro_sac, images):
    network = micro_sac(generator={"n_points": 3, "selection": "R", "tau": 0.5})
    for mode, same in ((True, False), (False, True)):
        network.train(mode)
        first, second = (network.prompts(images)[0].coordinates for _ in range(2))
        assert torch.equal(first, second) == same


def test_auto_points_can_be_left_out_in_evaluation_alone(micro_sac, images):
    network = micro_sac(generator={"n_points": 2, "n_points_test": 0})
    assert network.train()(images, points=CLICKS).prompts.coordinates.shape == (2, 5, 2)
    prompts, logits = network.eval().prompts(images, CLICKS)
    assert logits is None
    assert torch.equal(prompts.coordinates, CLICKS[0])
    assert network.prompts(images)[0].coordinates.shape == (2, 0, 2)
    assert network.header == micro_sac(generator={"n_points": 2}).header


def test_images_need_not_be_square_or_of_the_named_size(micro_sac):
    assert micro_sac().eval()(torch.zeros(1, 3, 96, 64)).shape == (1, 1, 96, 64)


def test_network_without_auto_points_can_be_traced(micro_sac, images):
    network = micro_sac(generator={"n_points_test": 0}).eval()
    with torch.no_grad():
        traced = torch.jit.trace(network, (images, CLICKS), check_trace=False)
        moved = (CLICKS[0] + 5, CLICKS[1])
        torch.testing.assert_close(traced(images.flip(0), moved), network(images.flip(0), moved))


def test_frozen_random_encoder_is_announced(micro_sac, caplog):
    with caplog.at_level(logging.WARNING):
        micro_sac(adapter="full")
        assert not caplog.records
        micro_sac(adapter="lora")
        micro_sac(adapter="none", sam={"finetune": False})
    assert "no SAM weights: with adapter 'lora'" in caplog.text
    assert "no SAM weights: with sam.finetune false" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "qlora"}, "adapter 'qlora': expected one of none, lora, msa, head, full"),
        ({"lora": {"rank": "d/2"}}, r"lora.rank 'd/2': expected int or one of \['d/4'\]"),
        ({"lora": {"rank": 0}}, "LoRA rank 0"),
        ({"adapter": "msa", "msa": {"init": "zero"}}, "msa.init 'zero': expected one of"),
        ({"sam": {"fine_tune": False}}, r"sam: unknown option \['fine_tune'\]"),
        ({"sam": {"finetune": False}}, "found adapter 'lora'"),
        (
            {"adapter": "none", "sam": {"finetune": False}, "generator": {"training": "pretrain"}},
            "found generator.training 'pretrain'",
        ),
        (
            {"adapter": "none", "sam": {"finetune": False, "train_prompt_encoder": True}},
            "expected 'none' and",
        ),
        ({"generator": {"selection": "X"}}, r"generator.selection 'X': expected one of \['O', 'R'\]"),
        ({"generator": {"training": "later"}}, "generator.training 'later'"),
        ({"generator": {"tau": 1.5}}, "generator.tau 1.5: expected a probability"),
        ({"generator": {"n_points": -1}}, "generator.n_points -1: expected 0 or more"),
        ({"generator": {"input_size": 0}}, "generator.input_size 0: expected 1 or more"),
        (
            {"generator": {"n_points": 0, "n_points_test": 2}},
            "n_points_test 2: a network without auto points",
        ),
    ],
)
def test_wrong_options_are_refused_and_the_permitted_named(micro_sac, options, message):
    with pytest.raises(ConfigurationError, match=message):
        micro_sac(**options)


def test_options_can_come_from_a_configuration_file(micro, tmp_path):
    path = tmp_path / "train.json"
    definition = {
        "sam_variant": micro.name,
        "image_size": 64,
        "adapter": "lora",
        "sam": {"finetune": True, "train_prompt_encoder": False, "activation_checkpointing": False},
        "lora": {"rank": 4},
        "msa": {"ratio": 0.25, "scale": 0.5, "init": "zero_last"},
        "generator": {
            "n_points": 1,
            "n_points_test": None,
            "selection": "O",
            "tau": None,
            "input_size": None,
            "training": "joint",
            "pretrain_epochs": 30,
            "warmup_epochs": 2,
            "seed": 0,
        },
        "sam_checkpoint": None,
    }
    path.write_text(json.dumps(definition))
    network = SAC(**json.loads(path.read_text()))
    assert json.loads(network.header["options"]) == {
        "adapter": "lora",
        "finetune": True,
        "train_prompt_encoder": False,
        "lora": {"rank": 4},
        "n_points": 1,
        "selection": "O",
        "tau": 0.5,
        "input_size": None,
    }


def test_a_token_of_its_own_draws_the_distance_map(micro_sac, images):
    network = micro_sac(adapter="full", generator={"n_points": 0}, outputs=2)
    decoder = network.sam.mask_decoder
    # both start as copies of what draws SAM's mask
    assert torch.equal(network.distance_token, decoder.mask_tokens.weight[:1])
    kernels = decoder.output_hypernetworks_mlps[0].state_dict()
    assert all(torch.equal(network.distance_hypernetwork.state_dict()[key], kernels[key]) for key in kernels)
    output = network.train()(images)
    assert output.mask_logits.shape == (2, 2, 16, 16)
    # an equal token attends alike, so the maps are equal until they learn
    torch.testing.assert_close(output.mask_logits[:, 0], output.mask_logits[:, 1])
    output.mask_logits[:, 1].square().sum().backward()
    assert network.distance_token.grad.any()
    assert all(parameter.grad.any() for parameter in network.distance_hypernetwork.parameters())
    own = decoder.output_hypernetworks_mlps[0].parameters()
    assert not any(parameter.grad is not None and parameter.grad.any() for parameter in own)
    with torch.no_grad():
        network.distance_token.mul_(-1)
        assert network.eval()(images).shape == (2, 2, 64, 64)
        found = network(images)
    assert not torch.allclose(found[:, 0], found[:, 1])


def test_an_image_has_its_own_distance_map(micro_sac, images):
    network = micro_sac(adapter="full", generator={"n_points": 0}, outputs=2).eval()
    with torch.no_grad():
        network.distance_token.mul_(-1)
        together, alone = network(images), network(images[1:])
    torch.testing.assert_close(together[1:], alone, atol=1e-5, rtol=1e-4)


def test_the_number_of_outputs_is_part_of_the_header(micro_sac):
    one, two = (json.loads(micro_sac(outputs=outputs).header["options"]) for outputs in (1, 2))
    assert two == {**one, "outputs": 2}


@pytest.mark.parametrize(("outputs", "finetune"), [(0, True), (3, True), (2, False)])
def test_outputs_that_nothing_can_learn_are_refused(micro_sac, outputs, finetune):
    adapter = "full" if finetune else "none"
    with pytest.raises(ConfigurationError, match=f"outputs {outputs}: expected 1, the mask, or 2"):
        micro_sac(adapter=adapter, sam={"finetune": finetune}, outputs=outputs)


def test_a_fine_map_draws_the_outlines_of_both_maps():
    torch.manual_seed(0)
    network = SAC("hybrid", 64, adapter="full", generator={"n_points": 0}, outputs=2).train()
    images = torch.randn(2, 3, 64, 64)
    output = network(images)
    assert output.mask_logits.shape == (2, 2, 32, 32)
    # an equal token and equal kernels draw an equal map
    torch.testing.assert_close(output.mask_logits[:, 0], output.mask_logits[:, 1])
    output.mask_logits[:, 1].square().sum().backward()
    for part in (network.distance_hypernetwork, network.distance_outline, network.sam.image_encoder.fine):
        assert all(parameter.grad.any() for parameter in part.parameters())
    assert network.eval()(images).shape == (2, 2, 64, 64)
