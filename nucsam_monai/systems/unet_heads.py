"""One U-Net (Ronneberger et al., MICCAI 2015) with several heads, which systems that learn maps of their own share."""

from collections.abc import Callable, Mapping

import torch
from monai.networks.nets import BasicUNet
from torch import Tensor, nn

from nucsam_monai.networks.baselines import Built
from nucsam_monai.systems.system import Order

Maps = dict[str, Tensor]
SIDE_MULTIPLE = 16
_SMALL, _STANDARD = (16, 16, 32, 64, 128, 16), (32, 64, 128, 256, 512, 32)
_NEARLY_NOTHING = 1e-6


class UNetHeads(nn.Module):
    """MONAI's plain U-Net with batch normalisation, and a head of two convolutions for each map.

    Args:
        heads: channels of each map by its name.
        to_logits: makes of the maps, ``(B, C, H, W)`` float32 each, what the network gives in evaluation: logits whose
            sigmoid the system's rule takes.
        small: 0.5 million parameters next to the heads instead of 7.8 million.
    """

    def __init__(
        self, heads: Mapping[str, int], to_logits: Callable[[Maps], Tensor], small: bool = False
    ) -> None:
        super().__init__()
        widths = _SMALL if small else _STANDARD
        self.features = BasicUNet(2, 3, 1, features=widths, norm="batch", act="relu")
        self.features.final_conv = nn.Identity()
        self.heads = nn.ModuleDict({name: _head(widths[-1], channels) for name, channels in heads.items()})
        self.to_logits = to_logits

    def maps(self, image: Tensor) -> Maps:
        """Return the maps of images ``(B, 3, H, W)``."""
        features = self.features(image)
        return {name: head(features).float() for name, head in self.heads.items()}

    def forward(self, image: Tensor) -> Maps | Tensor:
        """Return the maps in training, logits ``(B, C, H, W)`` in evaluation."""
        maps = self.maps(image)
        return maps if self.training else self.to_logits(maps)


def builder(heads: Mapping[str, int], to_logits: Callable[[Maps], Tensor]) -> Callable[[Order], Built]:
    """Return what builds a system's :class:`UNetHeads`."""

    def build(order: Order) -> Built:
        return Built(UNetHeads(heads, to_logits, order.small), SIDE_MULTIPLE)

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
