"""Define U-Net 3+ (Huang et al., 2020) with the changes of eU-Net3+ as options."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.utils.errors import ConfigurationError

Activation = Literal["glu", "relu"]


def conv_unit(in_channels: int, out_channels: int, activation: Activation = "relu") -> nn.Sequential:
    """Return convolution 3 x 3, batch normalisation and ``activation``.

    With ``glu`` one convolution gives both maps of ``sigmoid(W_a x + b_a) * (W_l x + b_l)``, so it has twice
    the channels that come out (eU-Net3+, gated linear units in the encoder).

    Example:
        >>> import torch
        >>> conv_unit(3, 8, "glu")(torch.zeros(2, 3, 4, 4)).shape
        torch.Size([2, 8, 4, 4])
    """
    gated = activation == "glu"
    width = 2 * out_channels if gated else out_channels
    return nn.Sequential(
        nn.Conv2d(in_channels, width, kernel_size=3, padding=1),
        nn.BatchNorm2d(width),
        nn.GLU(dim=1) if gated else nn.ReLU(inplace=True),
    )


def _double_unit(in_channels: int, out_channels: int, activation: Activation) -> nn.Sequential:
    """Return the block of an encoder level: two units one after the other."""
    return nn.Sequential(
        conv_unit(in_channels, out_channels, activation), conv_unit(out_channels, out_channels, activation)
    )


def initialise(module: nn.Module) -> None:
    """Draw weights of convolutions from Kaiming's normal distribution, those of normalisations from N(1, 0.02).

    As in the authors' code of eU-Net3+, which has it from U-Net 3+.
    """
    for part in module.modules():
        if isinstance(part, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_in")
        elif isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight, mean=1.0, std=0.02)
            nn.init.zeros_(part.bias)


class MaxBlurPool(nn.Module):
    """Maximum of 2 x 2 pixels, then a fixed binomial 3 x 3 filter (eU-Net3+, encoder; after Zhang, 2019).

    The filter has zeros beyond the border and nothing to learn.

    Example:
        >>> MaxBlurPool()(torch.ones(1, 2, 8, 8)).shape
        torch.Size([1, 2, 4, 4])
    """

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("kernel", (line[:, None] * line)[None, None], persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Return ``(B, C, H // 2, W // 2)`` from ``(B, C, H, W)``."""
        channels = features.shape[1]
        pooled = F.max_pool2d(features, kernel_size=2)
        return F.conv2d(
            pooled, self.kernel.to(pooled.dtype).expand(channels, 1, 3, 3), padding=1, groups=channels
        )


_TAPS = 3


def convolve_enlarged(features: Tensor, weight: Tensor, bias: Tensor | None, factor: int) -> Tensor:
    """Return ``conv2d(interpolate(features, scale_factor=factor), weight, bias, padding=1)``.

    Enlarging bilinearly (``align_corners=False``) and convolving are both linear, so that channels can be mixed
    first, where the map is small: each of the nine taps gives a map of its own, and two matrices, one for
    columns and one for rows, enlarge, shift and add them. With few output channels and a large factor that
    is a small part of the work and memory; the results are equal up to rounding.

    Args:
        features: ``(B, C, h, w)``.
        weight: ``(O, C, 3, 3)``.
        bias: ``(O,)``, or none.
        factor: how many times the sides are enlarged.

    Returns:
        ``(B, O, factor * h, factor * w)``.

    Example:
        >>> convolve_enlarged(torch.ones(1, 2, 4, 4), torch.ones(5, 2, 3, 3), None, 4).shape
        torch.Size([1, 5, 16, 16])
    """
    batch, _, height, width = features.shape
    out_channels = weight.shape[0]
    taps = weight.permute(0, 2, 3, 1).reshape(out_channels * _TAPS * _TAPS, -1, 1, 1)
    mixed = F.conv2d(features, taps).unflatten(1, (out_channels, _TAPS, _TAPS))
    columns = mixed.permute(0, 1, 2, 4, 3, 5).reshape(batch, out_channels, _TAPS * height, _TAPS * width)
    rows = columns @ _enlarging_taps(width, factor, features)
    enlarged = _enlarging_taps(height, factor, features).mT @ rows
    return enlarged if bias is None else enlarged + bias[:, None, None]


def _enlarging_taps(side: int, factor: int, like: Tensor) -> Tensor:
    """Return ``(3 * side, factor * side)``: the enlarged line as each of the three taps sees it, zeros outside."""
    line = torch.eye(side, device=like.device, dtype=torch.float32)[None]
    enlarged = F.interpolate(line, scale_factor=factor, mode="linear", align_corners=False)[0]
    padded = F.pad(enlarged, (1, 1))
    shifted = [padded[:, tap : tap + side * factor] for tap in range(_TAPS)]
    return torch.cat(shifted).to(like.dtype)


class FullScaleNode(nn.Module):
    """A decoder node of U-Net 3+ (Huang et al., 2020, section 2.1, Eq. 1).

    Every level's map is brought to the node's resolution and to the same number of channels; one more
    convolution mixes them. Coarser maps are enlarged and convolved in one step, see
    :func:`~nucsam_monai.networks.unet3plus.convolve_enlarged`.

    Args:
        level: level of the node; 0 is the finest.
        channels: channels of the maps of all levels, finest first.
        skip_channels: channels that each map contributes.

    Example:
        >>> node = FullScaleNode(1, [4, 8, 16], skip_channels=4)
        >>> node([torch.zeros(1, 4, 16, 16), torch.zeros(1, 8, 8, 8), torch.zeros(1, 16, 4, 4)]).shape
        torch.Size([1, 12, 8, 8])
    """

    def __init__(self, level: int, channels: Sequence[int], skip_channels: int) -> None:
        super().__init__()
        self.level = level
        self.skips = nn.ModuleList(conv_unit(width, skip_channels) for width in channels)
        width = skip_channels * len(channels)
        self.merge = conv_unit(width, width)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return ``(B, skip_channels * levels, h, w)``.

        Args:
            maps: ``(B, C_j, h_j, w_j)`` of all levels, finest first: of finer levels and its own those of
                the encoder, of coarser levels those of the decoder.
        """
        skips = [
            _skip(features, cast(nn.Sequential, unit), source - self.level)
            for source, (features, unit) in enumerate(zip(maps, self.skips, strict=True))
        ]
        return self.merge(torch.cat(skips, dim=1))


def _skip(features: Tensor, unit: nn.Sequential, finer_by: int) -> Tensor:
    """Return ``unit(_change_level(features, finer_by))``."""
    if finer_by <= 0:
        return unit(_change_level(features, finer_by))
    convolution = cast(nn.Conv2d, unit[0])
    enlarged = convolve_enlarged(features, convolution.weight, convolution.bias, 2**finer_by)
    return unit[1:](enlarged)


def _change_level(features: Tensor, finer_by: int) -> Tensor:
    """Enlarge a map ``2 ** finer_by`` times bilinearly, or take the maxima where the number is negative."""
    if finer_by < 0:
        return F.max_pool2d(features, kernel_size=2**-finer_by, ceil_mode=True)
    if finer_by == 0:
        return features
    return F.interpolate(features, scale_factor=2**finer_by, mode="bilinear", align_corners=False)


Guide = Callable[[int, Tensor], Tensor]
"""What becomes of an encoder level's map before it is handed on: from the level (0 is the finest) and the map."""


@dataclass(frozen=True)
class UNet3PlusOptions:
    """Configure sizes and parts; the defaults are eU-Net3+, see :data:`ORIGINAL_UNET3PLUS` for U-Net 3+.

    Attributes:
        filters: channels of the encoder levels, finest first. Each skip connection has those of the first.
        activation: activation of the encoder; the decoder has ReLU.
        pool: ``maxblur`` or ``max``.
        dropout: fraction of the coarsest level's channels that are left out in training.
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
    """Segment images with U-Net 3+ (Huang et al., 2020), with the changes of eU-Net3+ as options.

    Args:
        in_channels: channels of the image.
        out_channels: channels of the logits.
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
            _double_unit(before, after, options.activation)
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
        """Refuse images ``(B, C, H, W)`` whose sides are not multiples of ``stride``.

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
        """Return the maps of all levels, finest first.

        Args:
            image: ``(B, in_channels, H, W)``.
            guide: function that changes the maps; the next level also receives the changed map.

        Raises:
            ConfigurationError: sides that are not multiples of ``stride``.
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
            maps: output of :meth:`encode`.
        """
        known = [*maps[:-1], self.dropout(maps[-1])]
        for level in reversed(range(len(self.nodes))):
            known[level] = self.nodes[level](known)
        outputs = [self.head(known[0])]
        if self.training:
            for level, head in enumerate(self.side_heads, start=1):
                outputs.append(_change_level(head(known[level]), level))
        return outputs

    def forward(self, image: Tensor) -> Tensor:
        """Return logits ``(B, out_channels, H, W)`` of images ``(B, in_channels, H, W)``."""
        return self.decode(self.encode(image))[0]
