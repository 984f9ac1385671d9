import dataclasses
import json
import logging

import pytest
import torch
from torch.nn import functional as F

from nucsam_monai.networks import CFRSAM, NucleusPrompts
from nucsam_monai.networks.sam import SAM_VARIANTS, load_trained, save_trained
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError
from tests.networks.conftest import MICRO

# Windows of 5 tokens: MALA's largest kernel mirrors three.
WIDE_WINDOWS = dataclasses.replace(MICRO, name="wide_windows", window=5)
PLAIN = {"hmfm": {"fusion": "none"}, "bgmr": {"kind": "none"}}


@pytest.fixture
def build(monkeypatch):
    """Build a micro CFR-SAM for 64 px images, the same one each time."""
    monkeypatch.setitem(SAM_VARIANTS, WIDE_WINDOWS.name, WIDE_WINDOWS)

    def build(**options):
        torch.manual_seed(0)
        return CFRSAM(WIDE_WINDOWS.name, 64, **{"mala": {"rank": 4}, **options})

    return build


@pytest.fixture
def official_variant():
    return WIDE_WINDOWS


def prompts(*counts, negatives=0):
    generator = torch.Generator().manual_seed(3)
    total = sum(counts)
    points = 64 * torch.rand(total, 1 + negatives, 2, generator=generator)
    labels = torch.tensor([[1] + [0] * negatives]).expand(total, -1)
    return NucleusPrompts(points, labels, torch.tensor(counts))


def trained_parameters(variant, **options):
    with torch.device("meta"):
        network = CFRSAM(variant, **options)
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


@pytest.mark.parametrize(
    ("variant", "options", "parameters"),
    [
        ("vit_b", {}, 8_275_834),
        ("vit_h", {}, 18_804_338),
        ("vit_l", {}, 4_573_618 + 48 * 188_307),
        ("vit_b", {"adapter": "head"}, 4_573_618),
        ("vit_b", {"adapter": "head", **PLAIN}, 4_058_340),
        ("vit_b", {"adapter": "full", **PLAIN}, 93_735_472),
        ("vit_b", {"hmfm": {"fusion": "none"}}, 8_275_834 - 264_192),
        ("vit_b", {"bgmr": {"kind": "none"}}, 8_275_834 - 251_086),
    ],
)
def test_as_many_parameters_learn_as_published(variant, options, parameters):
    assert trained_parameters(variant, **options) == parameters


@pytest.mark.parametrize(
    ("mala", "millions"), [({"kernel": "static"}, 7.3), ({"rank": 16}, 5.6), ({"rank": 128}, 12.1)]
)
def test_ablation_of_mala_has_the_size_of_the_paper_s_table(mala, millions):
    assert round(trained_parameters("vit_b", mala=mala) / 1e6, 1) == millions


@pytest.mark.parametrize("adapter", ["mala", "lora", "msa", "head", "full"])
def test_coarse_masks_are_those_of_plain_sam_at_the_start(build, official, images, adapter):
    sam, path = official
    network = build(adapter=adapter, hmfm={"fusion": "none"}, sam_checkpoint=path).eval()
    asked = prompts(2, 1, negatives=1)
    found, expected = network(images, asked), sam(images, *asked[:3])
    torch.testing.assert_close(found.coarse, expected.logits)
    torch.testing.assert_close(found.iou, expected.iou)


@pytest.mark.parametrize("kind", ["full", "mlp"])
def test_refined_masks_are_the_coarse_ones_at_the_start(build, images, kind):
    output = build(bgmr={"kind": kind}).eval()(images, prompts(1, 2))
    enlarged = F.interpolate(output.coarse, size=(64, 64), mode="bilinear", align_corners=False)
    assert torch.equal(output.refined, enlarged)
    anew = build(bgmr={"kind": kind, "start": "scratch"}).eval()(images, prompts(1, 2))
    assert not torch.allclose(anew.refined, enlarged, atol=0.1)


def test_shapes_of_both_stages(build, images):
    network = build().eval()
    output = network(images, prompts(1, 2))
    assert output.coarse.shape == (3, 1, 16, 16)
    assert output.refined.shape == output.boundary.shape == (3, 1, 64, 64)
    assert output.iou.shape == (3, 1)
    final = network.decode(network.encode(images), prompts(1, 2))
    assert torch.equal(final.logits, output.refined)
    assert torch.equal(final.iou, output.iou)
    assert final.class_logits is None


def test_without_refinement_the_coarse_masks_are_final(build, images):
    network = build(bgmr={"kind": "none"}).eval()
    output = network(images, prompts(1, 2))
    assert output.refined is None
    assert output.boundary is None
    assert torch.equal(network.decode(network.encode(images), prompts(1, 2)).logits, output.coarse)


@pytest.mark.parametrize(
    "options",
    [
        *({"adapter": adapter} for adapter in ("mala", "none", "lora", "msa", "head", "full")),
        *({"mala": {"kernel": kernel, "rank": 4}} for kernel in ("static", "none")),
        *({"hmfm": {"fusion": fusion}} for fusion in ("add", "average", "concat", "none")),
        {"hmfm": {"reduce": "mean"}},
        *({"bgmr": {"kind": kind}} for kind in ("mlp", "none")),
        *({"bgmr": {part: False}} for part in ("mcbe", "bgff", "boundary_sup")),
        {"bgmr": {"attention": "released", "plain_side": 3}},
        {"bgmr": {"start": "scratch"}},
        {"activation_checkpointing": True},
    ],
)
def test_every_ablation_trains_and_evaluates(build, images, options):
    network = build(**options).train()
    output = network(images, prompts(2, 1))
    sum(part.square().mean() for part in output if part is not None).backward()
    frozen_or_reached = (
        [parameter.grad is not None or not parameter.requires_grad for parameter in network.bgmr.parameters()]
        if network.bgmr is not None
        else []
    )
    assert all(frozen_or_reached)
    frozen = [p for p in network.parameters() if not p.requires_grad]
    assert all(parameter.grad is None for parameter in frozen)
    mask = network.eval().decode(network.encode(images), prompts(2, 1)).logits
    assert mask.shape[:2] == (3, 1)
    assert mask.isfinite().all()


@pytest.mark.parametrize("counts", [(3, 0), (0, 2), (1, 1), (0, 0)])
def test_images_of_a_batch_do_not_mix(build, images, counts):
    network = build().eval()
    asked = prompts(*counts)
    together = network(images, asked)
    own = asked.points.split(list(counts)), asked.labels.split(list(counts))
    alone = [
        network(images[b : b + 1], NucleusPrompts(own[0][b], own[1][b], torch.tensor([counts[b]])))
        for b in (0, 1)
    ]
    for part, *parts in zip(together, *alone, strict=True):
        torch.testing.assert_close(part, torch.cat(parts))


@pytest.mark.parametrize("count", [0, 1])
def test_few_prompts_are_legal_in_training_and_move_no_statistics_of_masks(build, images, count):
    network = build().train()
    before = {
        name: value.clone()
        for name, value in network.bgmr.state_dict().items()
        if "running" in name and not name.startswith(("semantic", "evidence"))
    }
    output = network(images, prompts(0, count))
    assert output.refined.shape == (count, 1, 64, 64)
    torch.stack([part.sum() for part in output]).sum().backward()
    for name, value in before.items():
        assert torch.equal(network.bgmr.state_dict()[name], value), name
    missing = [
        name
        for name, parameter in network.named_parameters()
        if parameter.requires_grad and parameter.grad is None
    ]
    # SAM's other masks and their heads are never asked for.
    assert all(name.startswith("sam.mask_decoder.output_hypernetworks_mlps") for name in missing)
    if not count:
        gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
        assert all(gradient.abs().max() == 0 for gradient in gradients)


def test_boxes_prompt_like_sam_s_boxes(build, official, images):
    sam, path = official
    network = build(prompt="box", sam_checkpoint=path, **PLAIN).eval()
    corners = torch.tensor([[[4.0, 8.0], [30.0, 40.0]], [[20.0, 0.0], [63.0, 31.0]]])
    asked = NucleusPrompts(corners, torch.tensor([[2, 3], [2, 3]]), torch.tensor([1, 1]))
    sparse, dense = sam.prompt_encoder(boxes=corners.flatten(1))
    code = sam.prompt_encoder.get_dense_pe()
    embedding = sam.image_encoder(images).embedding
    expected = [
        sam.mask_decoder(
            image_embeddings=embedding[b : b + 1],
            image_pe=code,
            sparse_prompt_embeddings=sparse[b : b + 1],
            dense_prompt_embeddings=dense[b : b + 1],
            multimask_output=False,
        )[0]
        for b in (0, 1)
    ]
    torch.testing.assert_close(network(images, asked).coarse, torch.cat(expected), rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigurationError, match=r"expected \(N, 2, 2\), the two corners of a box"):
        network(images, prompts(1, 1))


def test_a_compact_sam_is_refined_to_its_pixels():
    network = CFRSAM("vit_tiny", 64, adapter="full").eval()
    output = network(torch.zeros(1, 3, 64, 64), prompts(1))
    assert output.coarse.shape == (1, 1, 32, 32)
    assert output.refined.shape == (1, 1, 64, 64)


def test_trained_weights_survive_a_round_trip(build, official, images, tmp_path):
    trained = build(sam_checkpoint=official[1])
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    trained.train()(images, prompts(2, 2))  # moves the statistics
    file = tmp_path / "cfrsam.safetensors"
    save_trained(file, trained, trained.header)
    restored = build(sam_checkpoint=official[1])
    load_trained(file, restored, restored.header)
    found, expected = (network.eval()(images, prompts(1, 2)).refined for network in (restored, trained))
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "other",
    [{"adapter": "head"}, {"mala": {"rank": 8}}, {"hmfm": {"reduce": "mean"}}, {"bgmr": {"mcbe": False}}],
)
def test_weights_of_other_options_are_refused(build, official, tmp_path, other):
    network = build(sam_checkpoint=official[1])
    save_trained(tmp_path / "cfrsam.safetensors", network, network.header)
    changed = build(sam_checkpoint=official[1], **other)
    with pytest.raises(CheckpointError, match=r"its options is .* but this network's is"):
        load_trained(tmp_path / "cfrsam.safetensors", changed, changed.header)


def test_header_names_what_was_trained(build):
    options = json.loads(build().header["options"])
    assert options["adapter"] == "mala"
    assert options["mala"] == {"kernel": "learnable", "rank": 4, "dropout": 0.1, "init": "zero_last"}
    assert "lora" not in options
    assert json.loads(build(adapter="lora").header["options"])["lora"] == {"rank": "d/4"}


def test_frozen_random_encoder_is_announced(build, caplog):
    with caplog.at_level(logging.WARNING):
        build(adapter="full")
        assert not caplog.records
        build()
    assert "no SAM weights: with adapter 'mala'" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter": "qlora"}, "adapter 'qlora': expected one of"),
        ({"mala": {"kernel": "fixed"}}, "mala.kernel 'fixed': expected one of"),
        ({"hmfm": {"fusion": "sum"}}, "hmfm.fusion 'sum': expected one of"),
        ({"bgmr": {"kind": "half"}}, "bgmr.kind 'half': expected one of"),
        ({"bgmr": {"mcbe": "no"}}, "bgmr.mcbe 'no': expected bool"),
        ({"prompt": "mask"}, "prompt 'mask': expected 'point' or 'box'"),
    ],
)
def test_wrong_options_are_refused_and_the_permitted_named(build, options, message):
    with pytest.raises(ConfigurationError, match=message):
        build(**options)


def test_counts_that_do_not_fit_are_refused(build, images):
    with pytest.raises(ConfigurationError, match="expected one count for each of 2 images"):
        build().eval()(images, prompts(3))


def test_masks_can_be_refined_in_boxes(build, images):
    network = build(refine_margin_px=8).eval()
    encoded, asked = network.encode(images), prompts(2, 1)
    in_boxes = network.decode(encoded, asked)
    assert in_boxes.logits.shape == (
        3,
        1,
        64,
        64,
    )  # the boxes around nuclei of such small images are the images
    torch.testing.assert_close(in_boxes.logits, network.decode_stages(encoded, asked).refined)
    assert network.decode(encoded, prompts(0, 0)).logits.shape == (0, 1, 64, 64)
    assert network.header == build().header
    with pytest.raises(ConfigurationError, match="refine_margin_px -1: expected null or a number"):
        build(refine_margin_px=-1)
    with pytest.raises(ConfigurationError, match=r"refine_halo_px 1\.5: expected null or a number"):
        build(refine_halo_px=1.5)
