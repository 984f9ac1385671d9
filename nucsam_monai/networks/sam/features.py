"""What the image encoder returns."""

from typing import NamedTuple

from torch import Tensor


class EncoderFeatures(NamedTuple):
    """The output of the SAM image encoder.

    Attributes:
        embedding: ``(B, embed_channels, h, w)`` image embedding, ``h`` and ``w`` being image sides / patch.
        levels: on request, the outputs of the blocks ``variant.feature_blocks``, each through the one shared
            neck, shaped like ``embedding``; the last one is ``embedding`` itself. Else empty.
        fine: ``(B, fine_channels, H / 2, W / 2)`` of variants with a trunk; None of others.
    """

    embedding: Tensor
    levels: tuple[Tensor, ...] = ()
    fine: Tensor | None = None
