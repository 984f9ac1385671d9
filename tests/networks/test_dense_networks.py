"""Networks that answer for every pixel: their sizes, and what is peculiar to each."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from nucsam_monai.networks.dense.cellvit import CellViT
from nucsam_monai.networks.dense.ddu_net import DDUNet, DilatedAttention
from nucsam_monai.networks.dense.double_unet import DoubleUNet
from nucsam_monai.networks.dense.micronet import MicroNet
from nucsam_monai.networks.dense.r2unet import R2UNet
from nucsam_monai.networks.dense.resunetpp import ResUNetPlusPlus
from nucsam_monai.networks.dense.transunet import SMALL_TRANSUNET, TransUNet
from nucsam_monai.networks.dense.unet import OriginalUNet
from nucsam_monai.networks.dense.unetpp import OriginalUNetPlusPlus
from nucsam_monai.networks.sam import SAM, SAM_VARIANTS, SAMVariant, start_trunk
from nucsam_monai.utils.errors import CheckpointError, ConfigurationError


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (OriginalUNet, 31_037_633),
        (OriginalUNetPlusPlus, 9_045_924),
        (ResUNetPlusPlus, 16_190_365),
        (R2UNet, 39_091_393),
        (DoubleUNet, 29_288_630),
        (TransUNet, 105_275_921),
        (DDUNet, 73_546_977),
        (MicroNet, 184_392_196),
        (lambda: CellViT(SAM_VARIANTS["vit_b"], classes=5), 145_302_218),
        (lambda: CellViT(SAM_VARIANTS["vit_l"], classes=5), 366_989_770),
        (lambda: CellViT(SAM_VARIANTS["vit_h"], classes=5), 698_817_738),
    ],
)
def test_parameters_are_counted(build: Callable[[], nn.Module], count: int) -> None:
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in build().parameters()) == count


def test_cellvit_has_the_paper_s_parameters_with_neck_and_tissue_branch() -> None:
    with torch.device("meta"):
        ours = sum(parameter.numel() for parameter in CellViT(SAM_VARIANTS["vit_b"], classes=5).parameters())
    assert round((ours + 787_456 + 19 * 257) / 1e6, 1) == 146.1


def answer_always(head: nn.Module, logit: float) -> None:
    for parameter, value in zip(head.parameters(), (0.0, logit), strict=True):
        nn.init.constant_(parameter, value)


def test_unet_plus_plus_averages_the_probabilities_of_its_heads() -> None:
    network = OriginalUNetPlusPlus(filters=(4, 8, 8)).eval()
    for head, bias in zip(network.heads, (-1.0, 2.0), strict=True):
        answer_always(head, bias)
    found = network(torch.zeros(1, 3, 8, 8)).sigmoid()
    expected = torch.tensor([-1.0, 2.0]).sigmoid().mean()
    torch.testing.assert_close(found, expected.expand(1, 1, 8, 8))


def test_recurrent_units_share_their_weights() -> None:
    counts = [
        sum(p.numel() for p in R2UNet(channels=4, levels=1, steps=steps).parameters()) for steps in (1, 3)
    ]
    assert counts[0] == counts[1]


def test_second_network_of_double_unet_sees_what_the_first_leaves() -> None:
    network = DoubleUNet(shrink=16).eval()
    answer_always(network.first_head, -100.0)
    seen: list[torch.Tensor] = []
    network.second_encoder[0].register_forward_pre_hook(lambda _module, inputs: seen.append(inputs[0]))
    network(torch.ones(1, 3, 32, 32))
    assert seen[0].abs().max() < 1e-6


def test_transunet_keeps_the_sides_of_other_images() -> None:
    network = TransUNet(size=SMALL_TRANSUNET).eval()
    with torch.no_grad():
        assert network(torch.randn(1, 3, 32, 48)).shape == (1, 1, 32, 48)


def test_dilated_attention_learns_from_one_image() -> None:
    attention = DilatedAttention(16)
    attention(torch.randn(1, 16, 4, 4)).sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())


def test_cellvit_starts_from_the_encoder_of_sam(
    official: tuple[SAM, str], micro: SAMVariant, tmp_path: Path
) -> None:
    sam, path = official
    network = CellViT(micro).eval()
    start_trunk(nn.Sequential(network), path)
    image = torch.randn(1, 3, 64, 64)
    last = micro.depth - 1
    tokens = network.encoder.run_blocks(network.encoder.embed(image), keep=[last])[last]
    encoder = sam.image_encoder
    torch.testing.assert_close(tokens, encoder.run_blocks(encoder.embed(image), keep=[last])[last])
    with pytest.raises(CheckpointError, match="no such file"):
        network.load_encoder(tmp_path / "none.pth")


def test_every_weight_of_cellvit_learns(micro: SAMVariant) -> None:
    branches = CellViT(micro, classes=2)(torch.randn(1, 3, 64, 64))
    assert {name: branch.shape[1] for name, branch in branches.items()} == {
        "nucleus_prediction": 2,
        "horizontal_vertical": 2,
        "type_prediction": 3,
    }


def test_other_variants_of_sam_are_refused(micro_trunk: SAMVariant) -> None:
    with pytest.raises(ConfigurationError, match="cellvit: found SAM variant 'micro_trunk'"):
        CellViT(micro_trunk)


def test_double_unet_starts_from_vgg(tmp_path: Path) -> None:
    network, vgg = DoubleUNet(shrink=16), DoubleUNet(shrink=16).first_encoder.state_dict()
    save_file({**vgg, "classifier.0.bias": torch.zeros(2)}, tmp_path / "vgg19.safetensors")
    start_trunk(network, str(tmp_path / "vgg19.safetensors"))
    torch.testing.assert_close(network.first_encoder.state_dict(), vgg)


def test_transunet_starts_from_the_hybrid_transformer_of_timm(tmp_path: Path) -> None:
    other = TransUNet(size=SMALL_TRANSUNET)
    names = {"embed": "patch_embed.proj", "blocks.2": "norm"}
    state = {"pos_embed": torch.randn(1, 197, 96), "head.bias": torch.zeros(2)}
    for name, tensor in other.state_dict().items():
        own, _, kind = name.rpartition(".")
        if own in names:
            state[f"{names[own]}.{kind}"] = tensor
        elif name.startswith(("stem.", "stages.")):
            state[f"patch_embed.backbone.{name}"] = tensor
        elif name.startswith("blocks."):
            state[name] = tensor
    save_file(state, tmp_path / "hybrid.safetensors")
    network = TransUNet(size=SMALL_TRANSUNET)
    start_trunk(network, str(tmp_path / "hybrid.safetensors"))
    torch.testing.assert_close(network.embed.weight, other.embed.weight)
    torch.testing.assert_close(network.stages.state_dict(), other.stages.state_dict())
    torch.testing.assert_close(network.blocks.state_dict(), other.blocks.state_dict())
    torch.testing.assert_close(network.positions[0, :, 1, 2], state["pos_embed"][0, 1 + 14 + 2])
    save_file({"norm.weight": torch.zeros(96)}, tmp_path / "other.safetensors")
    with pytest.raises(
        CheckpointError, match=r"other.safetensors: tensors do not fit the network: 67 missing"
    ):
        network.load_encoder(tmp_path / "other.safetensors")
