"""How SAM's features enter a map of eU-Net3+: the X-gated fusion block and its parts."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

Gate = Literal["glu", "released"]


@dataclass(frozen=True)
class XGFBOptions:
    """The X-gated fusion block.

    Attributes:
        gate: ``glu`` expands and gates as the paper says; ``released`` squeezes to a sixteenth with ReLU as
            the authors' code does.
        kv: keys and values of the attention: ``gated`` features as in the paper, ``ungated`` ones as in the
            authors' code, or SAM's through a linear layer (``sam``, ours).
        residual: add the gated features to what the attention returns.
    """

    gate: Gate = "glu"
    kv: Literal["gated", "ungated", "sam"] = "gated"
    residual: bool = False


class ChannelGate(nn.Module):
    """Weigh the channels of a map by what it and SAM's features show on average.

    Args:
        channels: of the map.
        guide_channels: of SAM's features.
        kind: see :class:`XGFBOptions`.
    """

    def __init__(self, channels: int, guide_channels: int, kind: Gate) -> None:
        super().__init__()
        joint = channels + guide_channels
        squeezed = max(1, joint // 16)
        hidden: list[nn.Module] = (
            [nn.Conv2d(joint, 2 * joint, kernel_size=1), nn.GLU(dim=1)]
            if kind == "glu"
            else [nn.Conv2d(joint, squeezed, kernel_size=1), nn.ReLU(inplace=True)]
        )
        last = nn.Conv2d(joint if kind == "glu" else squeezed, channels, kernel_size=1)
        self.weights = nn.Sequential(nn.AdaptiveAvgPool2d(1), *hidden, last, nn.Sigmoid())

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return ``features`` ``(B, C, h, w)`` weighed, where ``guide`` is ``(B, C_s, h, w)``."""
        return self.weights(torch.cat([features, guide], dim=1)) * features


class XGatedFusionBlock(nn.Module):
    """X-GFB: a channel gate, then attention of all positions to all (eU-Net3+, section on the fusion block).

    One head as wide as the map, neither positions nor normalisation: SAM speaks through the gate.

    Args:
        channels: of the map.
        guide_channels: of SAM's features.
        options: gate, keys and values, residual.

    Example:
        >>> block = XGatedFusionBlock(8, 4, XGFBOptions())
        >>> block(torch.zeros(1, 8, 4, 4), torch.zeros(1, 4, 4, 4)).shape
        torch.Size([1, 8, 4, 4])
    """

    def __init__(self, channels: int, guide_channels: int, options: XGFBOptions) -> None:
        super().__init__()
        self.options = options
        self.gate = ChannelGate(channels, guide_channels, options.gate)
        self.guide_tokens = nn.Linear(guide_channels, channels) if options.kv == "sam" else None
        self.attention = nn.MultiheadAttention(channels, num_heads=1, batch_first=True)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return what replaces ``features`` ``(B, C, h, w)``; ``guide`` is ``(B, C_s, h, w)``."""
        gated = self.gate(features, guide)
        query = _tokens(gated)
        if self.guide_tokens is not None:
            context = self.guide_tokens(_tokens(guide))
        else:
            context = query if self.options.kv == "gated" else _tokens(features)
        attended, _ = self.attention(query, context, context, need_weights=False)
        fused = attended.transpose(1, 2).reshape(gated.shape)
        return fused + gated if self.options.residual else fused


class ConcatFusion(nn.Module):
    """The ablation of X-GFB: concatenate and convolve 1 x 1.

    Args:
        channels: of the map.
        guide_channels: of SAM's features.
    """

    def __init__(self, channels: int, guide_channels: int) -> None:
        super().__init__()
        self.mix = nn.Conv2d(channels + guide_channels, channels, kernel_size=1)

    def forward(self, features: Tensor, guide: Tensor) -> Tensor:
        """Return what replaces ``features`` ``(B, C, h, w)``; ``guide`` is ``(B, C_s, h, w)``."""
        return self.mix(torch.cat([features, guide], dim=1))


def _tokens(features: Tensor) -> Tensor:
    return features.flatten(2).transpose(1, 2)
