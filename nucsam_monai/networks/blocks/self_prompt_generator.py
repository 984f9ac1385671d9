"""SPGen of UN-SAM: the network writes its own mask prompt (UN-SAM, section III-B)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.patch_conv_transpose import PatchConvTranspose2d
from nucsam_monai.networks.sam import LayerNorm2d


class PyramidSelfPromptGenerator(nn.Module):
    """Hint logits from four encoder levels, joined top-down as the paper's text describes.

    The shallow levels go to the fine scales: transposed convolution x4, x2, identity and stride 2. A
    feature pyramid then adds each finer map to the up-sampled coarser one.

    Args:
        in_channels: channels of each level.
        channels: channels of the pyramid.
    """

    def __init__(self, in_channels: int, channels: int = 64) -> None:
        super().__init__()
        heads: list[nn.Module] = [
            PatchConvTranspose2d(in_channels, channels, side=4),
            PatchConvTranspose2d(in_channels, channels, side=2),
            nn.Conv2d(in_channels, channels, kernel_size=1),
            nn.Conv2d(in_channels, channels, kernel_size=2, stride=2),
        ]
        self.heads = nn.ModuleList(nn.Sequential(head, LayerNorm2d(channels), nn.GELU()) for head in heads)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, channels, kernel_size=1) for _ in range(3))
        self.smooths = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, channels, kernel_size=3, padding=1), LayerNorm2d(channels), nn.GELU()
            )
            for _ in range(3)
        )
        self.head = nn.Conv2d(channels, 1, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return hint logits ``(B, 1, 4h, 4w)`` from four levels ``(B, C, h, w)``, shallow to deep."""
        scales = [head(level) for head, level in zip(self.heads, levels, strict=True)]
        joined = scales.pop()
        for fine, lateral, smooth in zip(reversed(scales), self.laterals, self.smooths, strict=True):
            up = F.interpolate(joined, size=fine.shape[-2:], mode="bilinear", align_corners=False)
            joined = smooth(up + lateral(fine))
        return self.head(joined)


class ReleasedSelfPromptGenerator(nn.Module):
    """Hint logits from the last embedding alone: the sum of four single-channel branches.

    This is the form of the authors' published weights; the paper's text describes
    :class:`PyramidSelfPromptGenerator`.

    Args:
        in_channels: channels of the embedding.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        middle, thin = in_channels // 4, in_channels // 16
        self.coarse = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(in_channels, 1, kernel_size=1))
        self.identity = nn.Conv2d(in_channels, 1, kernel_size=1)
        self.twice = nn.Sequential(
            PatchConvTranspose2d(in_channels, middle, side=2),
            nn.Conv2d(middle, 1, kernel_size=1),
        )
        self.fourfold = nn.Sequential(
            PatchConvTranspose2d(in_channels, middle, side=2),
            LayerNorm2d(middle),
            nn.GELU(),
            PatchConvTranspose2d(middle, thin, side=2),
            nn.Conv2d(thin, 1, kernel_size=1),
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return hint logits ``(B, 1, 4h, 4w)``; only the last level ``(B, C, h, w)`` is used."""
        embedding = levels[-1]
        size = [4 * side for side in embedding.shape[-2:]]
        logits = self.fourfold(embedding)
        for branch in (self.coarse, self.identity, self.twice):
            logits = logits + F.interpolate(branch(embedding), size=size, mode="bilinear", align_corners=True)
        return logits


def binary_hint(logits: Tensor, tau: float) -> Tensor:
    """Return 1 where ``sigmoid(logits) >= tau`` and 0 elsewhere, without a gradient."""
    return (torch.sigmoid(logits.detach().float()) >= tau).to(logits.dtype)


def thresholded_hint(logits: Tensor, tau: float) -> Tensor:
    """Return the logits where ``sigmoid(logits) >= tau`` and 0 elsewhere (UN-SAM, hint of SPGen)."""
    return logits * (torch.sigmoid(logits.detach().float()) >= tau)
