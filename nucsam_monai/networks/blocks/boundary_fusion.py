"""Fusion of the image's boundary evidence with the features of one mask: BGFF of CFR-SAM."""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.blocks.convolutions import JoinedConv, ModulatedDeformConv, convolve_joined

AttentionOrder = Literal["paper", "released"]


class SpatialAttention(nn.Module):
    """``x * A + x`` with an attention map ``A`` from the mean and the maximum over the channels.

    "CBAM" (Woo et al., 2018), section 3.2, whose sigmoid comes last: ``A = sigmoid(Conv7x7)``.

    Args:
        order: ``released`` takes the sigmoid before the convolution, like the authors' code, which leaves
            ``A`` unbounded.
    """

    def __init__(self, order: AttentionOrder = "paper") -> None:
        super().__init__()
        self.order = order
        self.conv = nn.Conv2d(2, 1, 7, padding=3)

    def forward(self, maps: Tensor) -> Tensor:
        """Weight ``(N, C, h, w)``."""
        pooled = torch.cat([maps.mean(dim=1, keepdim=True), maps.amax(dim=1, keepdim=True)], dim=1)
        if self.order == "released":
            return maps * self.conv(torch.sigmoid(pooled)) + maps
        return maps * torch.sigmoid(self.conv(pooled)) + maps


class BoundaryFusion(nn.Module):
    """BGFF: one half of the mask's features meets the evidence in a plain convolution, one in a deformable one.

    CFR-SAM, section on the boundary-guided refinement; each half passes a :class:`SpatialAttention` of its
    own, and a 1 x 1 convolution merges them.

    Args:
        width: channels of the evidence, of the mask's features and of the result, an even number.
        order: see :class:`SpatialAttention`.
        side: kernel side of the plain convolution, 1 in the authors' code; the paper does not tell.
    """

    def __init__(self, width: int, order: AttentionOrder = "paper", side: Literal[1, 3] = 1) -> None:
        super().__init__()
        half = width // 2
        self.plain = JoinedConv(width + half, half, side)
        self.plain_attention = SpatialAttention(order)
        self.deformable = ModulatedDeformConv(width + half, half)
        self.deformable_norm = nn.BatchNorm2d(half)
        self.deformable_attention = SpatialAttention(order)
        self.merge = nn.Sequential(
            nn.Conv2d(2 * half, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    def forward(self, evidence: Tensor, features: Tensor, owners: Tensor) -> tuple[Tensor, Tensor]:
        """Fuse.

        Args:
            evidence: ``(B, width, H, W)`` of the images.
            features: ``(N, width, H, W)`` of the masks.
            owners: ``(N,)`` int64, the image of each mask.

        Returns:
            ``(N, width, H, W)``, and the largest move of a tap ``(N,)`` in pixels.
        """
        first, second = features.chunk(2, dim=1)
        plain = self.plain(evidence, first, owners)
        prediction = convolve_joined(self.deformable.predict, evidence, second, owners)
        mixed = convolve_joined(self.deformable.taps, evidence, second, owners)
        moved, reach = self.deformable(mixed, prediction)
        moved = F.relu(self.deformable_norm(moved))
        both = torch.cat([self.plain_attention(plain), self.deformable_attention(moved)], dim=1)
        return self.merge(both), reach
