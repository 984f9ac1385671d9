"""U-Net++ ("UNet++: A Nested U-Net Architecture for Medical Image Segmentation", Zhou et al., 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nucsam_monai.networks.dense.unet import double_conv


class OriginalUNetPlusPlus(nn.Module):
    """U-Net++ at the size of its paper, with deep supervision.

    Node (i, j) sees the maps of its row up to column j - 1, and the upsampled map of node (i + 1, j - 1); each
    node of the first row has a head.

    Args:
        outputs: logits per pixel.
        filters: channels of the rows, finest first.

    Example:
        >>> sum(parameter.numel() for parameter in OriginalUNetPlusPlus().parameters())
        9045924
    """

    def __init__(self, outputs: int = 1, filters: Sequence[int] = (32, 64, 128, 256, 512)) -> None:
        super().__init__()
        self.depth = len(filters) - 1
        self.pool = nn.MaxPool2d(2)
        self.nodes = nn.ModuleDict()
        self.upsample = nn.ModuleDict()
        for row, width in enumerate(filters):
            self.nodes[f"{row}_0"] = double_conv(filters[row - 1] if row else 3, width)
            for column in range(1, len(filters) - row):
                self.upsample[f"{row}_{column}"] = nn.ConvTranspose2d(
                    filters[row + 1], width, kernel_size=2, stride=2
                )
                self.nodes[f"{row}_{column}"] = double_conv((column + 1) * width, width)
        self.heads = nn.ModuleList(nn.Conv2d(filters[0], outputs, kernel_size=1) for _ in range(self.depth))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """Segment images ``(B, 3, H, W)``, sides multiples of 2 to the number of poolings.

        Returns:
            In training the logits ``(B, outputs, H, W)`` of each head, the deepest first. In evaluation one such
            tensor, whose sigmoid is the mean of the heads' probabilities (the paper's accurate mode).
        """
        maps: dict[tuple[int, int], Tensor] = {}
        for column in range(self.depth + 1):
            for row in range(self.depth + 1 - column):
                maps[row, column] = self._node(row, column, maps, image)
        logits = [head(maps[0, column]) for column, head in enumerate(self.heads, start=1)][::-1]
        if self.training:
            return logits
        return torch.stack(logits).float().sigmoid().mean(dim=0).logit(eps=1e-6)

    def _node(self, row: int, column: int, maps: dict[tuple[int, int], Tensor], image: Tensor) -> Tensor:
        node = self.nodes[f"{row}_{column}"]
        if column == 0:
            return node(self.pool(maps[row - 1, 0]) if row else image)
        below = self.upsample[f"{row}_{column}"](maps[row + 1, column - 1])
        return node(torch.cat([*(maps[row, before] for before in range(column)), below], dim=1))
