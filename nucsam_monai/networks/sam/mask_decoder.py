"""The official mask decoder in the sizes of a variant."""

import math
from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from torch import nn

from nucsam_monai.networks.sam.layers import use_float32_norms
from nucsam_monai.networks.sam.variants import SAMVariant

STEEPEST = 6.0
"""Largest logarithm of a hill's slope, for which logits stay finite in any precision."""

_START_TOP = 2.0
_START_SLOPE = 10.0


class FineMaskDecoder(MaskDecoder):
    """The mask decoder of variants with a fine map: each mask token has a second kernel, for that map.

    A kernel alone cannot tell a nucleus from its neighbour, because a convolutional map says the same of both, and the
    cells of the embedding are as large as a nucleus. So the tokens are told what all maps show at the place of the
    prompt, and each mask token also gives a hill near it, as CondInst gives its kernels relative coordinates (Tian et
    al., 2020): ``top - e^a x^2 - e^b y^2 + 2 tanh(c) e^((a + b) / 2) x y``, x and y being the distance in cells from
    the place moved by a vector. ``top``, the vector, a, b and c start as the same for every prompt.

    Args:
        pyramid_channels: channels of the maps that are finer than the embedding, the last the fine one.
        options: of the official decoder.
    """

    def __init__(self, pyramid_channels: Sequence[int], **options: object) -> None:
        super().__init__(**options)
        channels = self.transformer_dim
        self.pyramid_channels = tuple(pyramid_channels)
        self.seen_at_place = nn.Linear(channels + sum(pyramid_channels), channels)
        nn.init.zeros_(self.seen_at_place.weight)
        nn.init.zeros_(self.seen_at_place.bias)
        self.fine_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, pyramid_channels[-1], 3) for _ in range(self.num_mask_tokens)
        )
        hills = [MLP(channels, channels, 6, 3) for _ in range(self.num_mask_tokens)]
        slope = math.log(_START_SLOPE)
        for mlp in hills:
            last = mlp.layers[-1]
            nn.init.zeros_(last.weight)
            last.bias.data = torch.tensor([_START_TOP, 0, 0, slope, slope, 0])
        self.place_hypernetworks_mlps = nn.ModuleList(hills)


def build_mask_decoder(variant: SAMVariant) -> MaskDecoder:
    """Build the mask decoder of a variant, official keys and weights layout.

    Run it through :func:`~nucsam_monai.networks.sam.decoding.decode_prompts`: its own forward pass repeats
    one image embedding for all prompts and is wrong for a batch of several images.
    """
    options = {
        "transformer_dim": variant.embed_channels,
        "transformer": TwoWayTransformer(
            depth=variant.decoder_depth,
            embedding_dim=variant.embed_channels,
            num_heads=variant.decoder_heads,
            mlp_dim=variant.decoder_mlp_width,
        ),
        "iou_head_depth": variant.iou_head_depth,
        "iou_head_hidden_dim": variant.iou_head_width,
    }
    pyramid = variant.pyramid_channels
    decoder = FineMaskDecoder(pyramid, **options) if pyramid else MaskDecoder(**options)
    use_float32_norms(decoder)
    return decoder
