"""What the networks have in common that find nuclei as objects."""

import json
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nucsam_monai.networks.compilation import WHY_NO_EXPORT, refuse_export
from nucsam_monai.networks.sam.trunk import TRUNK_CHANNELS, ConvTrunk
from nucsam_monai.utils.errors import ConfigurationError, require_package

COMPACT_ENCODER = "lite0"
"""EfficientNet-Lite0, which can start from ImageNet weights; heads on it are narrower than the papers'."""


class Detections(NamedTuple):
    """Hold the objects found in one image, in descending order of their scores.

    Attributes:
        masks: ``(n, 1, S, S)`` probabilities.
        scores: ``(n,)``.
        class_ids: ``(n,)`` int64 from 0.
    """

    masks: Tensor
    scores: Tensor
    class_ids: Tensor


class Detector(nn.Module):
    """Detect nuclei with one mask each; the base class of networks that compute their own losses.

    Subclasses give their :attr:`method`, and say in :meth:`learn` and :meth:`find` what they do in training and
    evaluation.

    Args:
        class_names: names of the classes of nuclei.
        encoder: name of the network that describes the image.
    """

    method: str
    """What weights files call the network."""
    paper_encoder: str
    default_min_score = 0.5
    """Score below which nuclei are dropped by default."""
    side_multiple = 1
    """What the sides of images must be multiples of, in pixels."""

    def __init__(self, class_names: Sequence[str], encoder: str) -> None:
        super().__init__()
        self.class_names = tuple(class_names)
        self.encoder = encoder

    def forward(
        self, image: Tensor, masks: Sequence[Tensor] = (), class_ids: Sequence[Tensor] = ()
    ) -> dict[str, Tensor] | list[Detections]:
        """Return the losses in training, and what was found in evaluation.

        Args:
            image: ``(B, 3, S, S)``, normalised.
            masks: in training ``(n, S, S)`` of each image; n may be 0.
            class_ids: in training ``(n,)`` of each image.

        Raises:
            ConfigurationError: the network is exported, or the side lengths are not multiples of :attr:`side_multiple`.
        """
        refuse_export(WHY_NO_EXPORT)
        if any(side % self.side_multiple for side in image.shape[2:]):
            raise ConfigurationError(
                f"{self.method}: found an image of {image.shape[2]} x {image.shape[3]} px, expected sides that are "
                f"multiples of {self.side_multiple} px. Change image_size."
            )
        return self.learn(image, masks, class_ids) if self.training else self.find(image)

    def learn(self, image: Tensor, masks: Sequence[Tensor], class_ids: Sequence[Tensor]) -> dict[str, Tensor]:
        """Return the losses by name; see :meth:`forward`."""
        raise NotImplementedError

    def find(self, image: Tensor) -> list[Detections]:
        """Return what is found in each image."""
        raise NotImplementedError

    @property
    def header(self) -> dict[str, str]:
        """Return the header of a weights file, which must agree with the network that it is loaded into."""
        return {
            "method": self.method,
            "sam_variant": "none",
            "options": json.dumps({"encoder": self.encoder}),
            "class_names": json.dumps(self.class_names),
        }


class TrunkLevels(ConvTrunk):
    """EfficientNet-Lite0 whose maps have strides 4 to 32."""

    channels = TRUNK_CHANNELS[1:]
    """Of the maps, the finest first."""

    def __init__(self) -> None:
        super().__init__(maps=5)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Return ``(B, C, H / stride, W / stride)`` for each stride of ``(B, 3, H, W)``, sides multiples of 32."""
        return super().forward(image)[1:]


def encoder_maps(name: str) -> tuple[nn.Module, Sequence[int]]:
    """Return a network that gives maps at strides 4 to 32, with random weights, and the channels of the maps.

    Args:
        name: name of a timm network, or :data:`COMPACT_ENCODER`.

    Raises:
        ConfigurationError: timm doesn't know the name.
    """
    if name == COMPACT_ENCODER:
        return TrunkLevels(), TrunkLevels.channels
    require_package("timm", f"encoder '{name}'")
    import timm  # takes a second, which other networks need not spend

    if not timm.is_model(name):
        raise ConfigurationError(
            f"encoder '{name}': expected a network of timm, as resnet50 or hrnet_w64, or {COMPACT_ENCODER}."
        )
    options = {"feature_location": ""} if name.startswith("hrnet") else {}
    network = timm.create_model(
        name, pretrained=False, features_only=True, out_indices=(1, 2, 3, 4), **options
    )
    return network, network.feature_info.channels()


def start_unlikely(layer: nn.Module) -> None:
    """Let a layer give the probability 0.01 at first, as most places are background (Lin et al., 2017, RetinaNet)."""
    weight, bias = layer.parameters()
    nn.init.normal_(weight, std=0.01)
    nn.init.constant_(bias, -math.log(99))


def with_coordinates(features: Tensor) -> Tensor:
    """Append each cell's place, x and y from -1 to 1, to ``(B, C, h, w)`` ("CoordConv", Liu et al., 2018)."""
    batch, _, height, width = features.shape
    y, x = (
        torch.linspace(-1, 1, side, dtype=features.dtype, device=features.device) for side in (height, width)
    )
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"))
    return torch.cat([features, grid.expand(batch, -1, -1, -1)], dim=1)
