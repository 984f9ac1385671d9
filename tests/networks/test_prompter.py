import json
import logging

import pytest
import safetensors.torch
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import convnext_small

from nucsam_monai.networks import Prompter
from nucsam_monai.networks.prompter import (
    CONVNEXT_SMALL,
    CompactBackbone,
    ConvNeXtBackbone,
    ConvNeXtShape,
    EmbeddingShape,
    pad_to_multiple,
)
from nucsam_monai.networks.sam import load_trained, save_trained
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError


def compact(n_classes=3, seed=0, **options):
    torch.manual_seed(seed)
    return Prompter(n_classes, options={"backbone": "compact", "channels": 16, **options}).eval()


def image_of(height, width, images=1):
    return torch.randn(images, 3, height, width, generator=torch.Generator().manual_seed(height + width))


@pytest.mark.parametrize(
    ("n_classes", "options", "parameters"),
    [(5, {}, 55_113_323), (1, {"levels": 4, "step": 16}, 56_292_199)],
)
def test_parameter_counts_are_the_papers(n_classes, options, parameters):
    with torch.device("meta"):
        network = Prompter(n_classes, options=options)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert all(parameter.requires_grad for parameter in network.parameters())


def test_the_backbone_equals_torchvisions_stages():
    torch.manual_seed(0)
    whole = convnext_small(stochastic_depth_prob=0.0).eval()
    backbone = ConvNeXtBackbone(CONVNEXT_SMALL).train()
    backbone.load_state_dict(
        {f"features.{name}": value for name, value in whole.features.state_dict().items()}
    )
    image = image_of(64, 32)
    maps = backbone(image)
    assert [tuple(stage.shape[1:]) for stage in maps] == [(96, 16, 8), (192, 8, 4), (384, 4, 2), (768, 2, 1)]
    with torch.no_grad():
        expected = image
        for number, layer in enumerate(whole.features):
            expected = layer(expected)
            if number in (1, 3, 5, 7):
                torch.testing.assert_close(maps[number // 2], expected)


@pytest.mark.parametrize("levels", [1, 3, 4])
@pytest.mark.parametrize(("step", "size"), [(8, (64, 96)), (16, (40, 70)), (8, (33, 1)), (12, (50, 45))])
def test_any_size_gives_points_classes_and_a_mask(levels, step, size):
    network = compact(levels=levels, step=step)
    points, class_logits, mask_logits, _ = network(image_of(*size, images=2))
    padded = [-(-max(side, 32) // step) for side in size]
    anchors = padded[0] * padded[1]
    assert points.shape == (2, anchors, 2)
    assert class_logits.shape == (2, anchors, 4)
    assert mask_logits.shape == (2, 1, *size)
    assert points.dtype == class_logits.dtype == mask_logits.dtype == torch.float32


def test_sizes_are_a_head_of_their_own_and_positive():
    plain, sized = compact(), compact(sizes=True)
    assert plain(image_of(40, 40)).sizes is None
    output = sized(image_of(40, 40, images=2))
    assert output.sizes.shape == output.points.shape
    assert (output.sizes > 0).all()
    head = sum(parameter.numel() for parameter in sized.sizes.parameters())
    counts = [sum(parameter.numel() for parameter in network.parameters()) for network in (plain, sized)]
    assert counts[1] == counts[0] + head
    assert "sizes" not in plain.header["options"]
    assert '"sizes": true' in sized.header["options"]


def test_padding_is_at_the_bottom_and_right():
    image = image_of(40, 70)
    padded = pad_to_multiple(image, 16)
    assert padded.shape == (1, 3, 48, 80)
    assert torch.equal(padded[..., :40, :70], image)
    assert not padded[..., 40:, :].any()
    assert not padded[..., 70:].any()
    assert pad_to_multiple(padded, 16) is padded
    network = compact(step=16)
    small, large = network(image), network(padded)
    assert torch.equal(small.points, large.points)
    assert torch.equal(small.mask_logits, large.mask_logits[..., :40, :70])


def test_without_offsets_points_are_the_anchors_inside_of_the_image():
    network = compact(step=8)
    for head in (network.deformation, network.regression):
        torch.nn.init.zeros_(head[-1].weight)
        torch.nn.init.zeros_(head[-1].bias)
    points = network(image_of(64, 96)).points[0]
    assert points.unique(dim=0).shape == (8 * 12, 2)
    assert points.amin(dim=0).tolist() == [4, 4]
    assert points.amax(dim=0).tolist() == [92, 60]
    assert points[1].tolist() == [12, 4]  # rows first, as everything else that is flattened


def test_both_offsets_add_up_in_pixels():
    network = compact(step=8)
    for head, offset in ((network.deformation, [1.0, -2.0]), (network.regression, [0.5, 8.0])):
        torch.nn.init.zeros_(head[-1].weight)
        head[-1].bias.data = torch.tensor(offset)
    points = network(image_of(32, 32)).points[0]
    assert points[0].tolist() == [4 + 1.5, 4 + 6.0]


def test_samples_for_the_heads_are_taken_at_the_moved_anchor():
    network = compact(step=8, levels=1)
    torch.nn.init.zeros_(network.deformation[-1].weight)
    image = image_of(64, 64)
    stages = network.backbone(image)
    network.deformation[-1].bias.data = torch.tensor([8.0, 0.0])
    moved = network.describe_anchors(stages, (64, 64))
    network.deformation[-1].bias.data.zero_()
    resting = network.describe_anchors(stages, (64, 64))
    vectors = [features.vectors.reshape(8, 8, -1) for features in (moved, resting)]
    # the fusing convolution sees the neighbours too; away from the border they have all moved by one anchor
    torch.testing.assert_close(vectors[0][2:6, 2:5], vectors[1][2:6, 3:6])


def test_without_the_deform_step_there_is_no_first_offset():
    network = compact(deform_step=False)
    assert network.deformation is None
    with_step = sum(parameter.numel() for parameter in compact().parameters())
    own = sum(parameter.numel() for parameter in network.parameters())
    assert with_step - own == 16 * 16 + 16 + 16 * 2 + 2
    stages = network.backbone(image_of(32, 32))
    points = network.describe_anchors(stages, (32, 32)).points[0]
    assert points.tolist() == [[x, y] for y in (4, 12, 20, 28) for x in (4, 12, 20, 28)]


def test_the_alignment_changes_what_is_sampled():
    outputs = [
        compact(sample_align=kind)(image_of(32, 32)).class_logits for kind in ("corrected", "released")
    ]
    assert not torch.allclose(*outputs)


def test_the_mask_can_be_left_out():
    network = compact()
    image = image_of(32, 32)
    assert network(image, with_mask=False).mask_logits is None
    assert torch.equal(network(image, with_mask=False).points, network(image).points)
    without = compact(aux_mask=False)
    assert without.mask_head is None
    assert without(image).mask_logits is None


class Brightness(nn.Module):
    """Stands for the mask head: bright where a cell's mean is."""

    def forward(self, stages):
        return stages[0].mean(dim=1, keepdim=True)


class Cells(nn.Module):
    """Stands for the backbone: each map is the image's mean over a cell."""

    def forward(self, image):
        gray = image.mean(dim=1, keepdim=True)
        return [
            F.avg_pool2d(gray, 4 * 2**i).repeat(1, width, 1, 1) for i, width in enumerate((32, 64, 128, 192))
        ]


def test_the_mask_is_registered_with_the_image():
    network = compact()
    network.backbone, network.mask_head = Cells(), Brightness()
    image = torch.zeros(1, 3, 61, 62)
    image[..., 16:32, 32:48] = 1
    mask = network(image).mask_logits
    # bilinear edges have 0.625 inside and 0.375 outside; at a corner 0.625 squared is left
    assert torch.equal(mask > 0.38, image[:, :1] > 0.5)


def test_images_of_a_batch_do_not_influence_each_other():
    network = compact()
    images = image_of(64, 48, images=2)
    both = network(images)
    for number in range(2):
        alone = network(images[number : number + 1])
        for found, expected in zip(alone[:3], both[:3], strict=True):
            torch.testing.assert_close(found[0], expected[number], atol=1e-4, rtol=1e-4)


def test_half_precision_gives_float32_points_near_to_the_exact_ones():
    network = compact()
    image = image_of(64, 64)
    with torch.autocast("cpu", torch.bfloat16):
        rough = network(image)
    assert all(tensor.dtype == torch.float32 for tensor in rough[:3])
    assert (rough.points - network(image).points).abs().max() < 0.2


THIN = ConvNeXtShape((1, 1, 1, 1), (8, 8, 8, 8))


def test_imagenet_weights_are_loaded_from_either_kind_of_file(tmp_path):
    source = ConvNeXtBackbone(THIN)
    state = {**source.state_dict(), "classifier.2.weight": torch.zeros(1000, 8)}
    torch.save(state, tmp_path / "convnext.pth")
    safetensors.torch.save_file(state, tmp_path / "convnext.safetensors")
    for name in ("convnext.pth", "convnext.safetensors"):
        backbone = ConvNeXtBackbone(THIN)
        backbone.load_imagenet(tmp_path / name)
        for key, value in source.state_dict().items():
            assert torch.equal(backbone.state_dict()[key], value)


def test_the_prompter_loads_them_into_its_backbone(tmp_path, monkeypatch):
    monkeypatch.setattr("nucsam_monai.networks.prompter.CONVNEXT_SMALL", THIN)
    source = ConvNeXtBackbone(THIN)
    torch.save(source.state_dict(), tmp_path / "convnext.pth")
    network = Prompter(1, options={"channels": 8}, backbone_checkpoint=str(tmp_path / "convnext.pth"))
    for key, value in source.state_dict().items():
        assert torch.equal(network.backbone.state_dict()[key], value)


def test_foreign_weights_are_refused(tmp_path):
    path = tmp_path / "other.pth"
    backbone = ConvNeXtBackbone(THIN)
    with pytest.raises(CheckpointError, match="no such file"):
        backbone.load_imagenet(path)
    torch.save({"stem.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match=r"no tensor named 'features\.\*'"):
        backbone.load_imagenet(path)
    torch.save({"features.0.0.weight": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="do not fit the network"):
        backbone.load_imagenet(path)


@pytest.mark.parametrize("backbone", ["compact", "shared"])
def test_weights_for_a_backbone_that_takes_none_are_refused(backbone):
    with pytest.raises(ConfigurationError, match="no weights of its own"):
        Prompter(1, options={"backbone": backbone}, backbone_checkpoint="convnext.pth")


def test_a_shared_backbone_needs_an_embedding_and_takes_no_image():
    with pytest.raises(ConfigurationError, match="found no embedding"):
        Prompter(1, options={"backbone": "shared"})
    network = Prompter(1, options={"backbone": "shared"}, embedding=EmbeddingShape(16, 8))
    with pytest.raises(ConfigurationError, match=r"PromptNucSeg\.propose"):
        network(image_of(32, 32))
    found = network.propose(network.backbone(torch.randn(2, 16, 8, 4)), (64, 32))
    assert found.points.shape == (2, 32, 2)
    assert found.mask_logits.shape == (2, 1, 64, 32)


def test_a_random_backbone_of_the_papers_size_is_said(caplog):
    with caplog.at_level(logging.WARNING), torch.device("meta"):
        Prompter(1, options={"backbone": "compact"})
        assert not caplog.records
        Prompter(1)
    assert "no ImageNet weights" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "levels 0"),
        ({"levels": 5}, "levels 5"),
        ({"step": 6}, "step 6"),
        ({"step": 0}, "step 0"),
        ({"channels": 0}, "channels 0"),
        ({"dropout": 1.0}, "dropout 1.0"),
        ({"backbone": "resnet"}, "convnext_small"),
        ({"sample_align": "both"}, "released"),
        ({"deform": True}, "unknown option"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(ConfigurationError, match=message):
        Prompter(1, options=options)


def test_a_network_without_classes_is_refused():
    with pytest.raises(ConfigurationError, match="n_classes 0"):
        Prompter(0)


def test_saved_weights_give_the_same_points(tmp_path):
    network, path = compact(), tmp_path / "model.safetensors"
    save_trained(path, network, network.header)
    other = compact(seed=1)
    load_trained(path, other, other.header)
    image = image_of(40, 33)
    for found, expected in zip(other(image)[:3], network(image)[:3], strict=True):
        assert torch.equal(found, expected)
    strange = compact(step=16)
    with pytest.raises(CheckpointError, match="its options is"):
        load_trained(path, strange, strange.header)


def test_the_header_names_what_changes_the_result():
    network = compact(dropout=0.3)
    assert json.loads(network.header["options"]) == {
        "backbone": "compact",
        "levels": 3,
        "step": 8,
        "channels": 16,
        "deform_step": True,
        "sample_align": "corrected",
        "aux_mask": True,
    }
    assert network.header["n_classes"] == "3"
    assert all(isinstance(value, str) for value in network.header.values())


def test_the_maps_of_the_compact_backbone_lie_over_the_image():
    torch.manual_seed(0)
    backbone = CompactBackbone().eval()
    for level, size in enumerate((16, 8, 4, 2)):
        image = image_of(64, 64).requires_grad_()
        maps = backbone(image)
        assert maps[level].shape == (1, backbone.widths[level], size, size)
        # what reaches one cell lies symmetrically about the cell, as far as the image goes
        cell = size // 2
        maps[level][..., cell, cell].sum().backward()
        rows = (image.grad.abs().sum(dim=(0, 1, 3)) > 0).nonzero()[:, 0]
        before, after = cell * 64 // size - rows.min(), rows.max() + 1 - (cell + 1) * 64 // size
        assert before == after or rows.max() == 63
