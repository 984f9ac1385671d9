"""SparseInst ("Sparse Instance Activation for Real-Time Instance Segmentation", Cheng et al., 2022)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from monai.losses import DiceLoss
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from nucsam_monai.networks.detector import (
    COMPACT_ENCODER,
    Detections,
    Detector,
    encoder_maps,
    start_unlikely,
    with_coordinates,
)

_STRIDE = 4
_CHANNELS, _COMPACT_CHANNELS = 256, 64
_KERNEL = 128
_GROUPS = 4
_BINS = (1, 2, 3, 6)
_MASK_POWER = 0.8
"""The paper's alpha: share of the masks in the score by which objects and nuclei are matched."""
_CLASS_WEIGHT, _DICE_WEIGHT, _PIXEL_WEIGHT = 2.0, 2.0, 2.0


class _Objects(NamedTuple):
    """Logits of N objects per image: ``(B, N, classes)``, ``(B, N)`` of objectness, ``(B, N, h, w)`` of masks."""

    classes: Tensor
    objectness: Tensor
    masks: Tensor


class ContextEncoder(nn.Module):
    """Mix the levels of a residual network: pyramid pooling of the coarsest, then down to the finest, and all joined.

    Args:
        in_channels: channels of the levels, finest first.
        channels: channels of each level and of the result.
    """

    def __init__(self, in_channels: Sequence[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(width, channels, kernel_size=1) for width in in_channels)
        self.smooth = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        part = channels // len(_BINS)
        self.pools = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(side), nn.Conv2d(channels, part, kernel_size=1), nn.ReLU())
            for side in _BINS
        )
        self.context = nn.Sequential(nn.Conv2d(2 * channels, channels, kernel_size=1), nn.ReLU())
        self.join = nn.Conv2d(len(in_channels) * channels, channels, kernel_size=1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Return ``(B, channels, h, w)`` of the levels, finest first."""
        *finer, coarsest = (lateral(level) for lateral, level in zip(self.lateral, levels, strict=True))
        pooled = [_enlarge(pool(coarsest), coarsest) for pool in self.pools]
        mixed = [self.context(torch.cat([*pooled, coarsest], dim=1))]
        for level in reversed(finer):
            mixed.append(level + F.interpolate(mixed[-1], size=level.shape[2:]))
        smoothed = [smooth(level) for smooth, level in zip(self.smooth, mixed, strict=True)]
        return self.join(torch.cat([_enlarge(level, smoothed[-1]) for level in smoothed], dim=1))


def _enlarge(maps: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(maps, size=like.shape[2:], mode="bilinear", align_corners=False)


def _convs(channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for width in (channels + 2, channels, channels, channels):
        layers += [nn.Conv2d(width, channels, kernel_size=3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers)


def _start_convolution(layer: nn.Module) -> None:
    """Keep the size of what passes ReLUs (He et al., 2015): nothing is normalised, and layers are many."""
    if isinstance(layer, nn.Conv2d) and layer.bias is not None:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)


class SparseInst(Detector):
    """Find nuclei by maps that each highlight one nucleus, without boxes, anchors or duplicate suppression.

    Args:
        class_names: names of the classes of nuclei.
        encoder: a network of timm that has maps at strides 4 to 32; the paper's is a ResNet-50. On ``lite0`` features
            have 64 channels instead of 256, and activation maps the paper's stride 8 instead of 4.
        most: objects per image; the paper's 100 are fewer than a tile of tissue holds.
        min_score: objects below it are dropped.

    Example:
        >>> with torch.device("meta"):
        ...     sum(p.numel() for p in SparseInst().parameters())
        33949938
    """

    method = "sparse_inst"
    paper_encoder = "resnet50"
    default_min_score = 0.3
    side_multiple = 32

    def __init__(
        self,
        class_names: Sequence[str] = ("nucleus",),
        encoder: str = "resnet50",
        most: int = 300,
        min_score: float = 0.05,
    ) -> None:
        super().__init__(class_names, encoder)
        self.most = most
        self.min_score = min_score
        self.backbone, channels = encoder_maps(encoder)
        own = _COMPACT_CHANNELS if encoder == COMPACT_ENCODER else _CHANNELS
        self.context = ContextEncoder(channels, own)
        self.instance_branch = _convs(own)
        self.coarser = nn.AvgPool2d(2) if encoder == COMPACT_ENCODER else nn.Identity()
        self.mask_branch = nn.Sequential(*_convs(own), nn.Conv2d(own, _KERNEL, kernel_size=1))
        self.activation = nn.Conv2d(own, _GROUPS * most, 3, padding=1, groups=_GROUPS)
        width = _GROUPS * own
        self.describe_object = nn.Sequential(nn.Linear(width, width), nn.ReLU())
        self.classes = nn.Linear(width, len(self.class_names))
        self.objectness = nn.Linear(width, 1)
        self.kernel = nn.Linear(width, _KERNEL)
        for part in (self.context, self.instance_branch, self.mask_branch):
            part.apply(_start_convolution)
        for layer in (self.classes, self.activation):
            start_unlikely(layer)
        nn.init.normal_(self.kernel.weight, std=0.01)  # masks begin undecided
        self.dice = DiceLoss(sigmoid=True, squared_pred=True)

    def describe(self, image: Tensor) -> _Objects:
        """Return the objects of ``(B, 3, S, S)``, masks at a quarter of the size."""
        features = with_coordinates(self.context(self.backbone(image)))
        of_instances = self.instance_branch(self.coarser(features))
        highlighted = self.activation(of_instances).float().sigmoid().flatten(2)
        share = highlighted / highlighted.sum(dim=2, keepdim=True).clamp_min(1e-6)
        gathered = (share @ of_instances.float().flatten(2).mT).unflatten(1, (_GROUPS, self.most))
        objects = self.describe_object(gathered.transpose(1, 2).flatten(2))
        masks = torch.einsum("bnc,bchw->bnhw", self.kernel(objects), self.mask_branch(features))
        return _Objects(
            self.classes(objects).float(), self.objectness(objects)[..., 0].float(), masks.float()
        )

    def learn(self, image: Tensor, masks: Sequence[Tensor], class_ids: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the losses of classes, objectness and masks, each object matched with one nucleus at most."""
        found = self.describe(image)
        wanted = torch.zeros_like(found.classes)
        logits, truth, objectness = [], [], []
        for index, (of_image, ids) in enumerate(zip(masks, class_ids, strict=True)):
            true = of_image[:, None].float()
            objects, nuclei = match(found.classes[index], found.masks[index], true, ids)
            wanted[index, objects, ids[nuclei]] = 1
            logits.append(_at_full_size(found.masks[index, objects]))
            truth.append(true[nuclei])
            objectness.append(found.objectness[index, objects])
        drawn, true, sure = torch.cat(logits), torch.cat(truth), torch.cat(objectness)
        count = max(len(drawn), 1)
        nothing = 0 * (
            found.masks.sum() + found.objectness.sum()
        )  # without nuclei every weight has a gradient, too
        dice = self.dice(drawn, true) if len(drawn) else nothing
        pixels = F.binary_cross_entropy_with_logits(drawn, true) if len(drawn) else nothing
        iou = mask_iou(drawn.detach(), true)
        return {
            "loss_class": _CLASS_WEIGHT * sigmoid_focal_loss(found.classes, wanted, reduction="sum") / count,
            "loss_objectness": F.binary_cross_entropy_with_logits(sure, iou, reduction="sum") / count
            + nothing,
            "loss_dice": _DICE_WEIGHT * dice,
            "loss_pixels": _PIXEL_WEIGHT * pixels,
        }

    def find(self, image: Tensor) -> list[Detections]:
        """Return the objects, scored by the geometric mean of class and objectness."""
        detections = []
        for classes, objectness, masks in zip(*self.describe(image), strict=True):
            best, ids = classes.sigmoid().max(dim=1)
            scores, order = (best * objectness.sigmoid()).sqrt().sort(descending=True, stable=True)
            scores = scores[scores >= self.min_score]
            order = order[: len(scores)]
            detections.append(Detections(_at_full_size(masks[order]).sigmoid(), scores, ids[order]))
        return detections


def _at_full_size(logits: Tensor) -> Tensor:
    """Return ``(n, 1, S, S)`` of ``(n, h, w)``."""
    return F.interpolate(logits[:, None], scale_factor=_STRIDE, mode="bilinear", align_corners=False)


@torch.no_grad()
def match(classes: Tensor, masks: Tensor, truth: Tensor, class_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Return the numbers of objects and of the nuclei that they stand for, each ``(k,)`` int64 (section 3.4).

    Args:
        classes: ``(N, classes)`` logits.
        masks: ``(N, h, w)`` logits.
        truth: ``(n, 1, S, S)`` masks of 0 and 1.
        class_ids: ``(n,)``.
    """
    found = masks.sigmoid().flatten(1)
    true = F.avg_pool2d(truth, _STRIDE).flatten(1)
    dice = 2 * found @ true.mT / ((found**2).sum(dim=1)[:, None] + (true**2).sum(dim=1)).clamp_min(1e-6)
    score = classes.sigmoid()[:, class_ids] ** (1 - _MASK_POWER) * dice**_MASK_POWER
    pairs = linear_sum_assignment(score.cpu().numpy(), maximize=True)
    objects, nuclei = (torch.as_tensor(numbers, device=masks.device) for numbers in pairs)
    return objects, nuclei


def mask_iou(logits: Tensor, truth: Tensor) -> Tensor:
    """Return the intersection over union ``(n,)`` of masks ``(n, 1, S, S)``, found ones as logits."""
    found, true = (logits > 0).flatten(1), truth.flatten(1) > 0.5
    return (found & true).sum(dim=1) / (found | true).sum(dim=1).clamp_min(1)
