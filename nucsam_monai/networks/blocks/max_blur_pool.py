"""Pooling that smooths before it drops pixels."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


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
