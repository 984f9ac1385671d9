"""Convolutions that networks for one mask per prompt are made of."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_TAPS = 9


def conv_bn_relu(inputs: int, outputs: int, side: int) -> nn.Sequential:
    """Return a convolution of odd kernel ``side`` without bias that keeps the size, BN and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def convolve_joined(conv: nn.Conv2d, shared: Tensor, own: Tensor, owners: Tensor) -> Tensor:
    """Return ``conv(cat([shared[owners], own]))`` and convolve what an image's prompts share only once.

    Args:
        conv: a plain convolution of ``A + C`` channels.
        shared: ``(B, A, h, w)`` of the images.
        own: ``(N, C, h, w)`` of the prompts.
        owners: ``(N,)`` int64, the image of each prompt.
    """
    ours, theirs = conv.weight.split([shared.shape[1], own.shape[1]], dim=1)
    once = F.conv2d(shared, ours, conv.bias, conv.stride, conv.padding)
    return once.index_select(0, owners) + F.conv2d(own, theirs, None, conv.stride, conv.padding)


class JoinedConv(nn.Module):
    """Convolution without bias, BN and ReLU of the maps of images beside those of their prompts.

    Args:
        inputs: channels of both together.
        outputs: channels of the result.
        side: odd kernel side; the size is kept.
    """

    def __init__(self, inputs: int, outputs: int, side: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, side, padding=side // 2, bias=False)
        self.norm = nn.BatchNorm2d(outputs)

    def forward(self, shared: Tensor, own: Tensor, owners: Tensor) -> Tensor:
        """Return ``(N, outputs, h, w)``; for the arguments see :func:`convolve_joined`."""
        return F.relu(self.norm(convolve_joined(self.conv, shared, own, owners)))


class ModulatedDeformConv(nn.Module):
    """3 x 3 convolution whose taps are moved and weighted at every pixel ("Deformable ConvNets v2", Zhu 2019).

    At first no tap is moved, and each has weight one half. Interpolation and the mixing of channels can change
    places; so the channels are mixed first, each tap for itself, which leaves fewer of them to interpolate and lets
    prompts share what belongs to their image. Both inputs of :meth:`forward` are the results of plain layers::

        layer(layer.taps(maps), layer.predict(maps))

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.predict = nn.Conv2d(inputs, 3 * _TAPS, 3, padding=1)
        for parameter in self.predict.parameters():
            nn.init.zeros_(parameter)
        self.taps = nn.Conv2d(inputs, _TAPS * outputs, 1, bias=False)
        nn.init.kaiming_normal_(self.taps.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, mixed: Tensor, prediction: Tensor) -> tuple[Tensor, Tensor]:
        """Convolve in float32.

        Args:
            mixed: ``(N, 9 * outputs, h, w)`` of :attr:`taps`, one tap after the other, row by row.
            prediction: ``(N, 27, h, w)`` of :attr:`predict`: the moves of each tap down and to the right in pixels,
                then the logits of their weights.

        Returns:
            ``(N, outputs, h, w)`` and the largest move of a tap along an axis, ``(N,)`` in pixels.
        """
        moves, weights = prediction.float().split([2 * _TAPS, _TAPS], dim=1)
        with torch.autocast(device_type=mixed.device.type, enabled=False):
            grid = _places(moves.unflatten(1, (_TAPS, 2)))
            maps = mixed.float().unflatten(1, (_TAPS, -1)).flatten(0, 1)
            sampled = F.grid_sample(maps, grid.flatten(0, 1), padding_mode="zeros", align_corners=False)
            weighted = sampled.unflatten(0, (-1, _TAPS)) * torch.sigmoid(weights).unsqueeze(2)
            convolved = weighted.sum(dim=1)
        return convolved.to(mixed.dtype), moves.detach().abs().amax(dim=(1, 2, 3))


def _places(moves: Tensor) -> Tensor:
    """Return where the taps look, as ``grid_sample`` wants it: ``(N, 9, h, w, 2)`` from ``(N, 9, 2, h, w)``."""
    height, width = moves.shape[-2:]
    tap = torch.arange(_TAPS, device=moves.device).view(_TAPS, 1, 1)
    rows = torch.arange(height, device=moves.device).view(height, 1) + tap // 3 - 1
    columns = torch.arange(width, device=moves.device) + tap % 3 - 1
    across = (2 * (columns + moves[:, :, 1]) + 1) / width - 1
    down = (2 * (rows + moves[:, :, 0]) + 1) / height - 1
    return torch.stack([across, down], dim=-1)
