"""Multi-scale boundary evidence of an image: MCBE of CFR-SAM."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SCALES = 4


class BoundaryEvidence(nn.Module):
    """Contrast of the image at four scales (CFR-SAM, section on the boundary-guided refinement, MCBE).

    From ``F_0``, a convolution of the image, with BN in every convolution::

        E_1 = sigmoid(Conv1x1(F_0));  E_i = sigmoid(Conv1x1(AvgPool3(E_(i-1))))
        BE(E) = E + sigmoid(Conv1x1(E - AvgPool3(E)))
        E = F_0 + ReLU(Conv1x1(cat(E_1, BE(E_2), BE(E_3), BE(E_4))))

    Args:
        width: channels of the result, an even number.
        multiscale: without it the result is ``F_0`` (the paper's ablation "no MCBE").
    """

    def __init__(self, width: int, *, multiscale: bool = True) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        self.scales = nn.ModuleList()
        if multiscale:
            half = width // 2
            self.scales.extend(_conv_bn(width if scale == 0 else half, half) for scale in range(SCALES))
            self.edges = nn.ModuleList(_conv_bn(half, half) for _ in range(SCALES - 1))
            self.merge = nn.Sequential(*_conv_bn(SCALES * half, width), nn.ReLU())

    def forward(self, image: Tensor) -> Tensor:
        """Turn normalised images ``(B, 3, H, W)`` into ``(B, width, H, W)``."""
        stem = self.stem(image)
        if not self.scales:
            return stem
        first, *smoother = self.scales
        evidence = torch.sigmoid(first(stem))
        found = [evidence]
        for scale, edge in zip(smoother, self.edges, strict=True):
            evidence = torch.sigmoid(scale(_smooth(evidence)))
            found.append(evidence + torch.sigmoid(edge(evidence - _smooth(evidence))))
        return stem + self.merge(torch.cat(found, dim=1))


def _smooth(maps: Tensor) -> Tensor:
    return F.avg_pool2d(maps, kernel_size=3, stride=1, padding=1)


def _conv_bn(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
