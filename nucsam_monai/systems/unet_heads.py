"""One U-Net (Ronneberger et al., MICCAI 2015) with several heads, for systems that learn maps other than a mask."""

from collections.abc import Callable, Mapping

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.baselines import Built, Size, TrunkFeatures
from nucsam_monai.systems.system import Order

Maps = dict[str, Tensor]
TYPES = "types"
"""The map of background and classes of networks that tell types of nuclei apart."""
SIZES: tuple[Size, ...] = ("small", "standard", "compact")
_WIDTHS: Mapping[Size, tuple[int, ...]] = {
    "small": (16, 16, 32, 64, 128, 16),
    "standard": (32, 64, 128, 256, 512, 32),
}
_NEARLY_NOTHING = 1e-6


class UNetHeads(nn.Module):
    """A U-Net with batch normalisation, and a head of two convolutions for each map.

    Next to the heads it has 0.5 million parameters in the size ``small`` and 7.8 million in ``standard``: MONAI's plain
    U-Net. ``compact`` is :class:`~nucsam_monai.networks.baselines.TrunkFeatures`, 3.5 million; its maps are upsampled
    from half the image's size.

    Args:
        heads: channels of each map by its name.
        to_logits: makes of the maps, ``(B, C, H, W)`` float32 each, what the network gives in evaluation: logits whose
            sigmoid the system's rule takes.
        size: size of the U-Net.
        classes: number of classes of nuclei. With several there is another head, :data:`TYPES`, and in evaluation the
            probability of each class follows the other maps.
    """

    def __init__(
        self,
        heads: Mapping[str, int],
        to_logits: Callable[[Maps], Tensor],
        size: Size = "standard",
        classes: int = 1,
    ) -> None:
        super().__init__()
        if size == "compact":
            self.stride, self.side_multiple, width = 2, 32, TrunkFeatures.channels
            self.features: nn.Module = TrunkFeatures()
        else:
            self.stride, self.side_multiple, width = 1, 16, _WIDTHS[size][-1]
            self.features = BasicUNet(2, 3, 1, features=_WIDTHS[size], norm="batch", act="relu")
            self.features.final_conv = nn.Identity()
        heads = {**heads, TYPES: classes + 1} if classes > 1 else heads
        self.heads = nn.ModuleDict({name: _head(width, channels) for name, channels in heads.items()})
        self.to_logits = to_logits

    def maps(self, image: Tensor) -> Maps:
        """Return the maps of images ``(B, 3, H, W)``, ``(B, C, H / stride, W / stride)`` float32 each."""
        features = self.features(image)
        return {name: head(features).float() for name, head in self.heads.items()}

    def forward(self, image: Tensor) -> Maps | Tensor:
        """Return the maps ``(B, C, H, W)`` in training, logits ``(B, C, H, W)`` in evaluation."""
        maps = self.maps(image)
        if self.stride > 1:
            maps = {
                name: F.interpolate(one, scale_factor=self.stride, mode="bilinear", align_corners=False)
                for name, one in maps.items()
            }
        if self.training:
            return maps
        logits = self.to_logits(maps)
        return torch.cat([logits, logit_of_softmax(maps[TYPES])[:, 1:]], dim=1) if TYPES in maps else logits


def builder(heads: Mapping[str, int], to_logits: Callable[[Maps], Tensor]) -> Callable[[Order], Built]:
    """Return what builds a system's :class:`UNetHeads`."""

    def build(order: Order) -> Built:
        network = UNetHeads(heads, to_logits, order.size, order.classes)
        return Built(network, network.side_multiple)

    return build


def logit_of_softmax(logits: Tensor) -> Tensor:
    """Return logits whose sigmoid is the softmax over the channels of ``(B, C, H, W)``."""
    return torch.special.logit(logits.softmax(dim=1), eps=_NEARLY_NOTHING)


def _head(features: int, channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(features, features, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(features),
        nn.ReLU(inplace=True),
        nn.Conv2d(features, channels, kernel_size=1),
    )
