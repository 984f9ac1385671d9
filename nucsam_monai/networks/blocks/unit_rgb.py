"""From images that were normalised for SAM back to RGB in 0..1."""

import torch
from torch import Tensor, nn

from nucsam_monai.utils.sam_pixels import SAM_PIXEL_MEAN, SAM_PIXEL_STD


class UnitRGB(nn.Module):
    """Undo SAM's normalisation, for parts of a network that expect RGB in 0..1.

    Example:
        >>> UnitRGB()(torch.zeros(1, 3, 1, 1)).flatten()  # SAM's mean colour
        tensor([0.4850, 0.4560, 0.4060])
    """

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(SAM_PIXEL_MEAN).view(3, 1, 1) / 255, persistent=False)
        self.register_buffer("std", torch.tensor(SAM_PIXEL_STD).view(3, 1, 1) / 255, persistent=False)

    def forward(self, image: Tensor) -> Tensor:
        """Return float32 RGB ``(B, 3, H, W)`` from images that were normalised with SAM's constants."""
        return image.float() * self.std + self.mean
