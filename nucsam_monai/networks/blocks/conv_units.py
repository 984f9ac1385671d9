"""The convolutions that U-Net 3+ and eU-Net3+ are made of, and how their weights start."""

from typing import Literal

from torch import nn

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


def double_unit(in_channels: int, out_channels: int, activation: Activation) -> nn.Sequential:
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
