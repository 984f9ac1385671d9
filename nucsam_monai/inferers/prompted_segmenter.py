"""What the prompted inferer asks of a network."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from nucsam_monai.inferers.detected_points import DetectedPoints
from nucsam_monai.inferers.tiling import EncodedTiles, Tiling
from nucsam_monai.networks.nucleus_prompts import MaskPrediction, NucleusPrompts

FindPoints = Callable[[Tensor], DetectedPoints]
"""A prompter: finds the nuclei of one image ``(1, 3, H, W)``."""


class PromptedSegmenter(Protocol):
    """Turns points into masks in two steps, so that an image is encoded once for all of its prompts.

    The inferer never looks into an embedding: whatever ``decode`` needs of the image can be in it.
    """

    def encode(self, image: Tensor) -> Any:
        """Return the embeddings of square images ``(B, 3, S, S)``."""
        ...

    def decode(self, embedding: Any, prompts: NucleusPrompts) -> MaskPrediction:
        """Return the masks of the prompts on all B images of the embedding.

        The sides of the logits divide S.
        """
        ...


@runtime_checkable
class TilePrompter(Protocol):
    """A prompter that shares the segmenter's encoder: it looks at the embeddings of the tiles."""

    def find_in_tiles(self, encoded: Sequence[EncodedTiles], tiling: Tiling) -> DetectedPoints:
        """Return the nuclei of the image that ``tiling`` covers, all of whose tiles are encoded."""
        ...
