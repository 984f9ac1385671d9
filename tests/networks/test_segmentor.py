import pytest
import torch
from torch.nn import functional as F

from nucsam_monai.losses import NucleusTargets, SegmentorLoss
from nucsam_monai.metrics import mask_ious
from nucsam_monai.networks import UNSAM, NucleusPrompts, Segmentor, start_from_unsam
from nucsam_monai.networks.sam import build_sam, decode_prompts, save_sam, save_trained
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError


@pytest.fixture
def segmentor(micro):
    """Build a micro segmentor for 64 px images, the same one each time."""

    def build(**options):
        torch.manual_seed(0)
        return Segmentor(micro.name, 64, **options)

    return build


def prompts_for(counts, negatives=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    number = sum(counts)
    points = 64 * torch.rand(number, 1 + negatives, 2, generator=generator)
    labels = torch.tensor([[1] + [0] * negatives] * number, dtype=torch.long).reshape(number, 1 + negatives)
    return NucleusPrompts(points, labels, torch.tensor(counts))


def loss_of(output, side=64):
    target = NucleusTargets(
        torch.ones(len(output.logits), side, side), torch.zeros(len(output.logits), dtype=torch.long)
    )
    return SegmentorLoss()(output, target)


def gradients(network, images, prompts):
    network.zero_grad(set_to_none=True)
    loss_of(network(images, prompts)).backward()
    return {
        name: parameter.grad for name, parameter in network.named_parameters() if parameter.grad is not None
    }


def test_masks_are_those_of_sam(segmentor, images):
    network, prompts = segmentor().eval(), prompts_for([3, 1])
    with torch.no_grad():
        found, expected = network(images, prompts), network.sam(images, *prompts[:3])
    assert (found.logits.shape, found.iou.shape) == ((4, 1, 16, 16), (4, 1))
    assert found.class_logits is None
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.iou, expected.iou)


def test_every_prompt_is_answered_from_its_own_image(segmentor, images):
    network, prompts = segmentor(classes=3).eval(), prompts_for([0, 2])
    with torch.no_grad():
        together = network(images, prompts)
        alone = network(images[1:], prompts._replace(prompts_per_image=torch.tensor([2])))
    for one, other in zip(together, alone, strict=True):
        torch.testing.assert_close(one, other)


def test_points_are_pixels_of_the_image_that_was_encoded(segmentor):
    network, prompts = segmentor().eval(), prompts_for([1])
    image = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = network.sam(image, *prompts[:3])
        torch.testing.assert_close(network(image, prompts).logits, expected.logits)


def test_class_head_answers_each_prompt_and_leaves_nothing_untrained(segmentor, images):
    network = segmentor(classes=5).train()
    prompts = prompts_for([2, 1])
    assert network(images, prompts).class_logits.shape == (3, 5)
    found = gradients(network, images, prompts)
    assert {name for name in found if name.startswith("class_head.")} == {
        f"class_head.{name}" for name, _ in network.class_head.named_parameters()
    }
    with torch.no_grad():
        assert not torch.equal(*network.eval()(images, prompts).class_logits[:2])


@pytest.mark.parametrize("classes", [0, 3])
@pytest.mark.parametrize("trainable", ["all", "decoder"])
def test_without_prompts_a_gradient_of_zero_reaches_what_prompts_reach(segmentor, images, trainable, classes):
    network = segmentor(classes=classes, finetune={"trainable": trainable}).train()
    expected = gradients(network, images, prompts_for([2, 1]))
    found = gradients(network, images, prompts_for([0, 0]))
    assert set(found) == set(expected)
    assert not any(gradient.any() for gradient in found.values())
    with torch.no_grad():
        output = network.eval()(images, prompts_for([0, 0]))
    assert (output.logits.shape, output.iou.shape) == ((0, 1, 16, 16), (0, 1))
    assert output.class_logits is None if not classes else output.class_logits.shape == (0, classes)


@pytest.mark.parametrize(
    ("finetune", "parts"),
    [
        ({}, {"image_encoder", "mask_decoder"}),
        ({"trainable": "decoder"}, {"mask_decoder"}),
        ({"trainable": "none"}, set()),
        ({"train_prompt_encoder": True}, {"image_encoder", "mask_decoder", "prompt_encoder"}),
    ],
)
def test_only_the_requested_parts_train(segmentor, finetune, parts):
    network = segmentor(finetune=finetune)
    trained = {name.split(".")[1] for name, p in network.named_parameters() if p.requires_grad}
    frozen = {name.split(".")[1] for name, p in network.named_parameters() if not p.requires_grad}
    assert trained == parts
    assert not trained & frozen


def test_header_tells_networks_apart_that_differ_and_no_others(segmentor):
    checkpointing = {"activation_checkpointing": True}
    assert segmentor(finetune=checkpointing).header == segmentor().header
    headers = [segmentor().header, segmentor(classes=2).header]
    headers.append(segmentor(finetune={"trainable": "decoder"}).header)
    assert len({str(header) for header in headers}) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"finetune": {"trainable": "encoder"}}, "finetune.trainable 'encoder'"),
        ({"finetune": {"trainable": "none", "train_prompt_encoder": True}}, "vanilla SAM"),
        ({"classes": -1}, "classes -1"),
        ({"classes": True}, "classes True"),
    ],
)
def test_wrong_options_are_refused(segmentor, options, message):
    with pytest.raises(ConfigurationError, match=message):
        segmentor(**options)


def test_a_random_encoder_that_stays_so_is_reported(segmentor, micro, tmp_path, caplog):
    segmentor(finetune={"trainable": "decoder"})
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    caplog.clear()
    save_sam(tmp_path / "sam.safetensors", build_sam(micro, 64).state_dict(), micro, 64)
    segmentor(finetune={"trainable": "decoder"}, sam_checkpoint=str(tmp_path / "sam.safetensors"))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def disc(row, column, radius):
    rows, columns = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def ious_of(output, masks):
    return mask_ious(masks, F.interpolate(output.logits, size=masks.shape[1:], mode="bilinear")[:, 0] > 0)


@pytest.mark.slow  # the bundles' trainings learn two images too
def test_two_images_are_learned_by_heart(segmentor):
    """Five bright discs of two images, each from a random one of its pixels, come out one by one."""
    masks = torch.stack(
        [disc(16, 16, 10), disc(44, 20, 9), disc(30, 48, 11), disc(20, 30, 12), disc(48, 46, 10)]
    )
    counts = torch.tensor([3, 2])
    foreground = torch.stack([part.any(0) for part in masks.split(counts.tolist())])[:, None].float()
    generator = torch.Generator().manual_seed(0)
    images = 2 * foreground - 1 + 0.1 * torch.randn(2, 3, 64, 64, generator=generator)
    network = segmentor(finetune={"train_prompt_encoder": True}).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-4)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 250)
    loss = SegmentorLoss()

    def draw():
        pixels = [torch.nonzero(mask) for mask in masks]
        picked = [p[int(torch.randint(len(p), (), generator=generator))].flip(0) for p in pixels]
        return NucleusPrompts(
            torch.stack(picked)[:, None].float(), torch.ones(5, 1, dtype=torch.long), counts
        )

    for step in range(250):
        optimizer.zero_grad()
        output = network(images, draw())
        loss(output, NucleusTargets(masks)).backward()
        optimizer.step()
        scheduler.step()
        if step % 25 == 0 and ious_of(output, masks).mean() > 0.9:
            break
    with torch.no_grad():
        assert ious_of(network.eval()(images, draw()), masks).mean() > 0.85


@torch.no_grad()
def test_points_and_boxes_of_one_batch_are_answered_as_if_alone(segmentor, images):
    network = segmentor().eval()
    point, box = torch.tensor([[[20.0, 30]]]), torch.tensor([[[5.0, 8], [30, 40]]])
    points = torch.cat([torch.cat([point, torch.zeros(1, 1, 2)], dim=1), box])
    labels = torch.tensor([[1, -1], [2, 3]])
    both = network(images, NucleusPrompts(points, labels, torch.tensor([1, 1]), has_boxes=True)).logits
    alone = network(images, NucleusPrompts(point, torch.tensor([[1]]), torch.tensor([1, 0]))).logits
    torch.testing.assert_close(both[:1], alone)
    sam = network.sam
    sparse, dense = sam.prompt_encoder(boxes=box.reshape(1, 4))
    features = network.encode(images)
    code = sam.prompt_encoder.position_code((4, 4))
    boxed = decode_prompts(sam.mask_decoder, features.embedding, code, sparse, dense, [0, 1]).logits
    torch.testing.assert_close(both[1:], boxed)


def test_a_segmentor_starts_from_the_weights_of_unsam(micro_trunk, tmp_path, images):
    torch.manual_seed(1)
    unsam = UNSAM(micro_trunk.name, ["nuclei"], 64, encoder={"trainable": "all"})
    path = str(tmp_path / "model.safetensors")
    save_trained(path, unsam, unsam.header)
    network = Segmentor(micro_trunk.name, 64)
    start_from_unsam(path, network)
    sam = network.sam
    for own, theirs in (
        (sam.image_encoder, unsam.image_encoder),
        (sam.prompt_encoder, unsam.prompt_encoder),
        (sam.mask_decoder.transformer, unsam.decoder.transformer),
        (sam.mask_decoder.output_upscaling, unsam.decoder.output_upscaling),
        (sam.mask_decoder.fine_hypernetworks_mlps[3], unsam.decoder.fine_hypernetworks_mlps[0][0]),
    ):
        assert all(torch.equal(one, theirs.state_dict()[name]) for name, one in own.state_dict().items())
    assert torch.equal(sam.mask_decoder.mask_tokens.weight[2], unsam.decoder.queries[0][0])
    assert network.eval()(images, prompts_for([1, 2])).logits.shape == (3, 1, 32, 32)
    with pytest.raises(CheckpointError, match="expected 'unsam' with 'vit_tiny'"):
        start_from_unsam(path, Segmentor("vit_tiny", 64))
