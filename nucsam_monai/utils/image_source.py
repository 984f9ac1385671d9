"""Read regions of images that are in memory or too large for it."""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np


class Region(NamedTuple):
    """Hold a rectangle in pixels of an :class:`ImageSource`."""

    x: int
    y: int
    width: int
    height: int


class ImageSource(ABC):
    """Read any region of an image.

    Attributes:
        width: in pixels.
        height: in pixels.
        downsample: side in pixels of the whole image's full resolution that one pixel covers.
    """

    width: int
    height: int
    downsample: float = 1.0

    @abstractmethod
    def read(self, region: Region) -> np.ndarray:
        """Return a region that lies inside of the image: ``(height, width, 3)`` uint8 RGB."""

    @abstractmethod
    def close(self) -> None:
        """Release the file."""


class ArrayImage(ImageSource):
    """Hold an image in memory.

    Args:
        pixels: ``(H, W, 3)`` uint8 RGB.
    """

    def __init__(self, pixels: np.ndarray) -> None:
        self.pixels = pixels
        self.height, self.width = pixels.shape[:2]

    def read(self, region: Region) -> np.ndarray:
        """See :meth:`ImageSource.read`."""
        x, y, width, height = region
        return self.pixels[y : y + height, x : x + width]

    def close(self) -> None:
        """See :meth:`ImageSource.close`; nothing is open."""
