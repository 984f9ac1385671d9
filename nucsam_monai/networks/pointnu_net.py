"""PointNu-Net ("PointNu-Net: Keypoint-Assisted Convolutional Neural Network [...]", Yao et al., 2023)."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.losses import DiceLoss
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.detector import (
    COMPACT_ENCODER,
    Detections,
    Detector,
    encoder_maps,
    start_unlikely,
    with_coordinates,
)
from nucsam_monai.networks.sam.convolutions import DepthwiseConv

_STRIDE = 4
_RATES = (1, 2, 4, 8)
_GROUPS = 32
"""Of channels that are normalised together, two at least: a map of one cell has no spread of its own."""
_MASK_WEIGHT = 3.0


class _Widths(NamedTuple):
    """Channels of each level and branch of the fusion and of the heads, and convolutions of a head."""

    fusion: int = 256
    head: int = 256
    convs: int = 7


_COMPACT = _Widths(fusion=32, head=64, convs=3)


class _Maps(NamedTuple):
    """Logits ``(B, classes, h, w)`` of nuclei's centres, and ``(B, C, h, w)`` kernels and features of their masks."""

    heat: Tensor
    kernels: Tensor
    features: Tensor


class JointPyramidFusion(nn.Module):
    """The paper's JPFM: all levels at the size of the finest, seen by separable convolutions of several dilations.

    Args:
        in_channels: channels of the levels, finest first.
        channels: channels of each level and of each branch.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.narrow = nn.ModuleList(_conv(width, channels) for width in in_channels)
        width = channels * len(in_channels)
        self.branches = nn.ModuleList(
            nn.Sequential(
                DepthwiseConv(width, kernel=3, dilation=rate),
                _conv(width, channels, kernel=1),
            )
            for rate in _RATES
        )

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return ``(B, 4 * channels, h, w)`` of the levels, finest first."""
        size = levels[0].shape[2:]
        maps = [
            F.interpolate(narrow(level), size=size, mode="bilinear", align_corners=False)
            for narrow, level in zip(self.narrow, levels, strict=True)
        ]
        joined = torch.cat(maps, dim=1)
        return torch.cat([branch(joined) for branch in self.branches], dim=1)


def _conv(in_channels: int, out_channels: int, kernel: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(min(_GROUPS, out_channels // 2), out_channels),
        nn.ReLU(inplace=True),
    )


def _head(in_channels: int, out_channels: int, widths: _Widths) -> nn.Sequential:
    convs = [_conv(widths.head if number else in_channels, widths.head) for number in range(widths.convs)]
    return nn.Sequential(*convs, nn.Conv2d(widths.head, out_channels, kernel_size=1))


class PointNuNet(Detector):
    """Find nuclei by their centres; the kernel predicted at a centre gives the mask from the image's features.

    Args:
        class_names: names of the classes of nuclei.
        encoder: a network of timm that has maps at strides 4 to 32; the paper's is an HRNet-W64. On ``lite0`` each head
            has 3 convolutions of 64 channels instead of 7 of 256, and levels and branches have 32 channels.
        most: objects per image that are kept.
        min_score: objects below it are dropped.

    Example:
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in PointNuNet(("a", "b", "c", "d", "e")).parameters())
        136846533
    """

    method = "pointnu_net"
    paper_encoder = "hrnet_w64"
    default_min_score = 0.2
    side_multiple = 32

    def __init__(
        self,
        class_names: Sequence[str] = ("nucleus",),
        encoder: str = "hrnet_w64",
        most: int = 500,
        min_score: float = 0.05,
    ) -> None:
        super().__init__(class_names, encoder)
        self.most = most
        self.min_score = min_score
        self.backbone, channels = encoder_maps(encoder)
        widths = _COMPACT if encoder == COMPACT_ENCODER else _Widths()
        self.fusion = JointPyramidFusion(channels, widths.fusion)
        width = widths.fusion * len(_RATES)
        self.heat_head = _head(width, len(self.class_names), widths)
        self.kernel_head = _head(width + 2, widths.head, widths)
        self.feature_head = _head(width + 2, widths.head, widths)
        start_unlikely(self.heat_head[-1])
        self.dice = DiceLoss(sigmoid=True, squared_pred=True)

    def describe(self, image: Tensor) -> _Maps:
        """Return the three maps of ``(B, 3, S, S)``, sides multiples of 32, at a quarter of the size."""
        fused = self.fusion(self.backbone(image))
        placed = with_coordinates(fused)
        maps = self.heat_head(fused), self.kernel_head(placed), self.feature_head(placed)
        return _Maps(*(one.float() for one in maps))

    def learn(self, image: Tensor, masks: Sequence[Tensor], class_ids: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the focal loss of the centres and the Dice loss of the masks."""
        maps = self.describe(image)
        heat = torch.zeros_like(maps.heat)
        # Without nuclei, too, every weight gets a gradient, so that several processes stay in step.
        logits, truth = [maps.features[:1, :1] * maps.kernels[:1, :1].sum() * 0], []
        for index, (of_image, ids) in enumerate(zip(masks, class_ids, strict=True)):
            cells, spread = centre_cells(of_image, _STRIDE)
            draw_peaks(heat[index], cells, spread, ids)
            drawn = self._draw(maps.kernels[index], maps.features[index], cells)
            logits.append(drawn)
            truth.append(of_image[:, None].float())
        nuclei = sum(len(one) for one in truth)
        mask = self.dice(torch.cat(logits[1:]), torch.cat(truth)) if nuclei else logits[0].sum()
        return {
            "loss_keypoints": keypoint_loss(maps.heat, heat),
            "loss_mask": _MASK_WEIGHT * mask,
        }

    def find(self, image: Tensor) -> list[Detections]:
        """Return the nuclei whose centre is a peak of its class' map."""
        maps = self.describe(image)
        return [self._find(*(one[index] for one in maps)) for index in range(len(image))]

    def _find(self, heat: Tensor, kernels: Tensor, features: Tensor) -> Detections:
        heat = heat.sigmoid()
        peaks = heat * (F.max_pool2d(heat, kernel_size=3, stride=1, padding=1) == heat)
        best, ids = peaks.max(dim=0)
        scores, places = best.flatten().topk(min(self.most, best.numel()))
        places = places[scores >= self.min_score]
        scores = scores[scores >= self.min_score]
        cells = torch.stack([places % best.shape[1], places // best.shape[1]], dim=1)
        masks = self._draw(kernels, features, cells).sigmoid()
        # How sure a mask is of its pixels, as in "SOLO" (Wang et al., 2020).
        inside = masks > 0.5
        scores = scores * (masks * inside).sum(dim=(1, 2, 3)) / inside.sum(dim=(1, 2, 3)).clamp_min(1)
        order = scores.argsort(descending=True, stable=True)
        return Detections(masks[order], scores[order], ids.flatten()[places][order])

    def _draw(self, kernels: Tensor, features: Tensor, cells: Tensor) -> Tensor:
        """Return the logits ``(n, 1, S, S)`` of the masks of the nuclei whose centres lie in cells ``(n, 2)``."""
        if not len(cells):
            return features.new_zeros((0, 1, *(_STRIDE * side for side in features.shape[1:])))
        chosen = kernels[:, cells[:, 1], cells[:, 0]]
        logits = torch.einsum("cn,chw->nhw", chosen, features)[:, None].float()
        return F.interpolate(logits, scale_factor=_STRIDE, mode="bilinear", align_corners=False)


def centre_cells(masks: Tensor, stride: int) -> tuple[Tensor, Tensor]:
    """Return the cells (x, y) int64 ``(n, 2)`` of the nuclei's centroids, and the spread ``(n,)`` of their peaks.

    The spread is a third of the radius of a disc of the nucleus's area, and at least half a cell.

    Args:
        masks: ``(n, S, S)``.
        stride: side length of a cell in pixels.

    Example:
        >>> cells, spread = centre_cells(torch.ones(1, 8, 16), 4)
        >>> cells.tolist(), round(spread.item(), 2)
        ([[1, 0]], 0.53)
    """
    pixels = masks.float()
    area = pixels.sum(dim=(1, 2)).clamp_min(1)
    centres = [
        (pixels.sum(dim=axis) * torch.arange(pixels.shape[3 - axis], device=masks.device)).sum(dim=1) / area
        for axis in (1, 2)
    ]
    return (torch.stack(centres, dim=1) // stride).long(), ((area / math.pi).sqrt() / stride / 3).clamp_min(
        0.5
    )


def draw_peaks(heat: Tensor, cells: Tensor, spread: Tensor, class_ids: Tensor) -> None:
    """Draw a Gaussian peak of height 1 for each nucleus into the map of its class.

    Args:
        heat: ``(classes, h, w)``, changed in place; where peaks overlap the higher value stays.
        cells: ``(n, 2)`` as (x, y).
        spread: ``(n,)``, standard deviation in cells.
        class_ids: ``(n,)``.
    """
    y, x = (torch.arange(side, device=heat.device) for side in heat.shape[1:])
    squared = (x - cells[:, :1])[:, None] ** 2 + (y - cells[:, 1:])[..., None] ** 2
    peaks = torch.exp(-squared / (2 * spread[:, None, None] ** 2))
    heat.scatter_reduce_(0, class_ids[:, None, None].expand_as(peaks), peaks, "amax")


def keypoint_loss(logits: Tensor, heat: Tensor) -> Tensor:
    """Return the focal loss of keypoints ("CornerNet", Law and Deng, 2018, Eq. 1), per nucleus.

    Args:
        logits: ``(B, classes, h, w)`` float32.
        heat: target of the same shape, 1 at centres and decreasing around them.
    """
    probability = logits.sigmoid()
    found = (1 - probability) ** 2 * F.logsigmoid(logits)
    spared = (1 - heat) ** 4 * probability**2 * F.logsigmoid(-logits)
    is_centre = heat == 1
    return -torch.where(is_centre, found, spared).sum() / is_centre.sum().clamp_min(1)
