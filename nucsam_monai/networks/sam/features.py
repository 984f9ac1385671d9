"""What the image encoder returns."""

from typing import NamedTuple

from torch import Tensor


class EncoderFeatures(NamedTuple):
    """The output of the SAM image encoder.

    Attributes:
        embedding: ``(B, embed_channels, h, w)`` image embedding, ``h`` and ``w`` being image sides / patch.
        levels: on request, the outputs of the blocks ``variant.feature_blocks``, each through the one shared
            neck, shaped like ``embedding``; the last one is ``embedding`` itself. Else empty.
        pyramid: of variants with a trunk, maps at an 8th, a 4th and half of the image that join the embedding with
            the trunk's maps; else empty.
    """

    embedding: Tensor
    levels: tuple[Tensor, ...] = ()
    pyramid: tuple[Tensor, ...] = ()

    @property
    def fine(self) -> Tensor | None:
        """The map ``(B, fine_channels, H / 2, W / 2)`` of variants with a trunk; None of others."""
        return self.pyramid[-1] if self.pyramid else None
