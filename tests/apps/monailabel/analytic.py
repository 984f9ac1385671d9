"""Models whose answers can be told by looking at an image: dark pixels are nuclei."""

import numpy as np
import torch
from torch import Tensor

from nucsam_monai.networks.nucleus_prompts import MaskPrediction
from nucsam_monai.utils.instances import connected_components
from nucsam_monai.utils.prediction import NucleiPrediction, prediction_from_instances

DARK = 100


def discs(height: int, width: int, centres: list[tuple[int, int]], radius: int) -> np.ndarray:
    """Return a white ``(H, W, 3)`` image with black discs at (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    image = np.full((height, width, 3), 230, dtype=np.uint8)
    for x, y in centres:
        image[(rows - y) ** 2 + (columns - x) ** 2 <= radius**2] = 20
    return image


def dark_nuclei(image: np.ndarray) -> NucleiPrediction:
    """Segment ``(H, W, 3)``: the connected dark pixels."""
    return prediction_from_instances(connected_components(image[..., 0] < DARK))


class DarkNetwork:
    """A click network whose mask is all that is dark, of every click and box alike."""

    def __init__(self) -> None:
        self.encoded = 0

    def encode(self, image: Tensor) -> Tensor:
        self.encoded += 1
        return image

    def decode_clicks(self, embedding: Tensor, points: Tensor, labels: Tensor) -> MaskPrediction:
        return self._masks(embedding, len(points))

    def decode_boxes(self, embedding: Tensor, boxes: Tensor) -> MaskPrediction:
        return self._masks(embedding, len(boxes))

    def _masks(self, embedding: Tensor, count: int) -> MaskPrediction:
        # Padding is zero after normalisation, which must not look dark.
        logits = torch.where(embedding[:, :1] < 0, 5.0, -5.0).expand(count, -1, -1, -1)
        return MaskPrediction(logits, torch.full((count, 1), 0.75))


def normalised(image: np.ndarray) -> Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)[None].float() - DARK
