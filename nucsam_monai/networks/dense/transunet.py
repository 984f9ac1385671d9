"""TransUNet ("TransUNet: Transformers Make Strong Encoders for Medical Image Segmentation", Chen et al., 2021)."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.dense.unet import double_conv
from nucsam_monai.networks.sam.weights import load_strictly, read_tensors
from nucsam_monai.utils.errors import require_package


@dataclass(frozen=True)
class TransUNetSize:
    """Sizes; the defaults are R50-ViT-B/16.

    Attributes:
        blocks: residual blocks at strides 4, 8 and 16.
        stem: channels at stride 2.
        stages: channels at strides 4, 8 and 16.
        width: channels of a token.
        depth: transformer blocks.
        heads: attention heads of each block.
        grid: side of the learned position table in tokens, which other images interpolate.
        decoder: channels behind the transformer and at strides 8, 4, 2 and 1.
        groups: groups of the residual network's group normalisation.
    """

    blocks: tuple[int, int, int] = (3, 4, 9)
    stem: int = 64
    stages: tuple[int, int, int] = (256, 512, 1024)
    width: int = 768
    depth: int = 12
    heads: int = 12
    grid: int = 14
    decoder: tuple[int, int, int, int, int] = (512, 256, 128, 64, 16)
    groups: int = 32


SMALL_TRANSUNET = TransUNetSize((1, 1, 1), 32, (32, 64, 128), 96, 2, 3, 14, (64, 48, 32, 24, 16), 8)


class TransUNet(nn.Module):
    """TransUNet: a residual network, a transformer on its tokens, and a decoder that joins the residual network's maps.

    Residual network and transformer blocks are timm's, with group normalisation and standardised weights.

    Args:
        outputs: logits per pixel.
        size: sizes of the parts.

    Example:
        >>> sum(parameter.numel() for parameter in TransUNet().parameters())
        105275921
    """

    def __init__(self, outputs: int = 1, size: TransUNetSize = TransUNetSize()) -> None:
        super().__init__()
        require_package("timm", "TransUNet")
        # Takes a second, which other networks need not spend.
        from timm.layers import GroupNormAct, StdConv2dSame
        from timm.models.resnetv2 import ResNetV2
        from timm.models.vision_transformer import Block

        backbone = ResNetV2(
            size.blocks,
            size.stages,
            num_classes=0,
            stem_chs=size.stem,
            stem_type="same",
            preact=False,
            conv_layer=StdConv2dSame,
            norm_layer=partial(GroupNormAct, num_groups=size.groups),
        )
        self.stem, self.stages = backbone.stem, backbone.stages
        self.embed = nn.Conv2d(size.stages[-1], size.width, kernel_size=1)
        self.positions = nn.Parameter(torch.zeros(1, size.width, size.grid, size.grid))
        self.blocks = nn.Sequential(
            *(Block(size.width, size.heads, qkv_bias=True, proj_drop=0.1) for _ in range(size.depth)),
            nn.LayerNorm(size.width, eps=1e-6),
        )
        first, *rest = size.decoder
        self.narrow = nn.Sequential(
            nn.Conv2d(size.width, first, kernel_size=3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
        )
        skips = [*size.stages[1::-1], size.stem, 0]
        self.decoder = nn.ModuleList(
            double_conv(before + skip, after)
            for before, skip, after in zip(size.decoder, skips, rest, strict=False)
        )
        self.head = nn.Conv2d(rest[-1], outputs, kernel_size=3, padding=1)
        nn.init.trunc_normal_(self.positions, std=0.02)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, outputs, H, W)`` of ``(B, 3, H, W)``, sides multiples of 16."""
        skips = [self.stem[:2](image)]
        features = self.stem[2](skips[0])
        for stage in self.stages:
            features = stage(features)
            skips.append(features)
        tokens = self.embed(skips.pop())
        tokens = tokens + resize_positions(self.positions, tokens)
        tokens = self.blocks(tokens.flatten(2).mT).mT.unflatten(2, tokens.shape[2:])
        features = self.narrow(tokens)
        for join in self.decoder:
            features = F.interpolate(features, scale_factor=2, mode="bilinear", align_corners=False)
            features = join(torch.cat([features, skips.pop()], dim=1) if skips else features)
        return self.head(features)

    def load_encoder(self, path: Path | str) -> None:
        """Start residual network and transformer from weights of timm's ``vit_base_r50_s16_224``.

        Raises:
            CheckpointError: the file cannot be read or holds other tensors.
        """
        state = {name.removeprefix("patch_embed.backbone."): one for name, one in read_tensors(path).items()}
        parts = {"embed": "patch_embed.proj", f"blocks.{len(self.blocks) - 1}": "norm"}
        names = {name: name for name in self.state_dict() if name.startswith(("stem.", "stages.", "blocks."))}
        for own, timms in parts.items():
            names |= {f"{own}.{kind}": f"{timms}.{kind}" for kind in ("weight", "bias")}
        found = {own: state[timms] for own, timms in names.items() if timms in state}
        rows, columns = self.positions.shape[2:]
        if "pos_embed" in state and state["pos_embed"].shape[1] == 1 + rows * columns:
            # The first place is that of the class token.
            found["positions"] = state["pos_embed"][:, 1:].mT.unflatten(2, (rows, columns))
        rest = {name: one for name, one in self.state_dict().items() if name not in {*names, "positions"}}
        load_strictly(self, rest | found, source=f"{path}")


def resize_positions(table: Tensor, like: Tensor) -> Tensor:
    """Return the table ``(1, C, rows, columns)`` at the size of ``(B, C, h, w)``."""
    if table.shape[2:] == like.shape[2:]:
        return table
    return F.interpolate(table, size=like.shape[2:], mode="bicubic", align_corners=False)
