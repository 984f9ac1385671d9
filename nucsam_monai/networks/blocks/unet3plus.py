"""U-Net 3+ and eU-Net3+: an encoder and a decoder with full-scale skip connections."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from nucsam_monai.networks.blocks.conv_units import Activation, double_unit, initialise
from nucsam_monai.networks.blocks.full_scale_node import FullScaleNode, change_level
from nucsam_monai.networks.blocks.max_blur_pool import MaxBlurPool
from nucsam_monai.utils.errors import ConfigurationError

Guide = Callable[[int, Tensor], Tensor]
"""What becomes of an encoder level's map before it is handed on: from the level (0 is the finest) and the map."""


@dataclass(frozen=True)
class UNet3PlusOptions:
    """Sizes and parts; the defaults are eU-Net3+, see :data:`ORIGINAL_UNET3PLUS` for U-Net 3+.

    Attributes:
        filters: channels of the encoder levels, the finest first. Each skip connection has those of the first.
        activation: of the encoder; the decoder has ReLU.
        pool: ``maxblur`` or ``max``.
        dropout: share of the coarsest level's channels that are left out in training.
        deep_supervision: give an output of every decoder level in training (U-Net 3+, section 2.2).
    """

    filters: Sequence[int] = (32, 64, 128, 256, 512)
    activation: Activation = "glu"
    pool: Literal["maxblur", "max"] = "maxblur"
    dropout: float = 0.3
    deep_supervision: bool = False

    def __post_init__(self) -> None:
        if (
            isinstance(self.filters, str)
            or len(self.filters) < 2
            or any(type(width) is not int or width < 1 for width in self.filters)
        ):
            raise ConfigurationError(
                f"unet.filters {self.filters!r}: expected the numbers of channels of two or more levels."
            )
        if not 0 <= self.dropout < 1:
            raise ConfigurationError(f"unet.dropout {self.dropout}: expected a share from 0 to below 1.")


ORIGINAL_UNET3PLUS = UNet3PlusOptions(
    filters=(64, 128, 256, 512, 1024), activation="relu", pool="max", dropout=0.0
)
"""The sizes of U-Net 3+ itself, 26.97 million parameters (Huang et al., 2020, Table 1)."""


class UNet3Plus(nn.Module):
    """U-Net 3+ (Huang et al., 2020) with the changes of eU-Net3+ as options.

    Args:
        in_channels: of the image.
        out_channels: of the logits.
        options: sizes and parts.

    Example:
        >>> import torch
        >>> unet = UNet3Plus(3, 1, UNet3PlusOptions(filters=(4, 8, 16))).eval()
        >>> unet(torch.zeros(1, 3, 32, 24)).shape
        torch.Size([1, 1, 32, 24])
    """

    def __init__(self, in_channels: int, out_channels: int, options: UNet3PlusOptions) -> None:
        super().__init__()
        filters = list(options.filters)
        merged = filters[0] * len(filters)
        self.stages = nn.ModuleList(
            double_unit(before, after, options.activation)
            for before, after in zip([in_channels, *filters[:-1]], filters, strict=True)
        )
        self.pool = MaxBlurPool() if options.pool == "maxblur" else nn.MaxPool2d(2)
        self.dropout = nn.Dropout2d(options.dropout)
        self.nodes = nn.ModuleList(
            FullScaleNode(
                level,
                [*filters[: level + 1], *[merged] * (len(filters) - level - 2), filters[-1]],
                filters[0],
            )
            for level in range(len(filters) - 1)
        )
        self.head = nn.Conv2d(merged, out_channels, kernel_size=3, padding=1)
        supervised = [*[merged] * (len(filters) - 2), filters[-1]] if options.deep_supervision else []
        self.side_heads = nn.ModuleList(
            nn.Conv2d(width, out_channels, kernel_size=3, padding=1) for width in supervised
        )
        initialise(self)

    @property
    def stride(self) -> int:
        """Pixels of the image per pixel of the coarsest level: sides of images are multiples of it."""
        return 2 ** (len(self.stages) - 1)

    def require_size(self, image: Tensor) -> None:
        """Refuse images ``(B, C, H, W)`` whose sides are no multiples of ``stride``.

        Raises:
            ConfigurationError: they are not.
        """
        height, width = image.shape[-2:]
        if height % self.stride or width % self.stride:
            raise ConfigurationError(
                f"image: found {height} x {width} px, expected sides that are multiples of {self.stride} px. "
                "Pad or resize the image."
            )

    def encode(self, image: Tensor, guide: Guide | None = None) -> list[Tensor]:
        """Return the maps of all levels, the finest first.

        Args:
            image: ``(B, in_channels, H, W)``.
            guide: what changes them; a changed map is also what the next level sees.

        Raises:
            ConfigurationError: sides that are no multiples of ``stride``.
        """
        self.require_size(image)
        maps: list[Tensor] = []
        for level, stage in enumerate(self.stages):
            features = stage(self.pool(maps[-1]) if maps else image)
            maps.append(features if guide is None else guide(level, features))
        return maps

    def decode(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return logits ``(B, out_channels, H, W)``: the network's and, in training, the supervised levels'.

        Args:
            maps: of :meth:`encode`.
        """
        known = [*maps[:-1], self.dropout(maps[-1])]
        for level in reversed(range(len(self.nodes))):
            known[level] = self.nodes[level](known)
        outputs = [self.head(known[0])]
        if self.training:
            for level, head in enumerate(self.side_heads, start=1):
                outputs.append(change_level(head(known[level]), level))
        return outputs

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, H, W)`` of images ``(B, in_channels, H, W)``."""
        return self.decode(self.encode(image))[0]
