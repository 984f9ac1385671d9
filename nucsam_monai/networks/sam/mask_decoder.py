"""The official mask decoder in the sizes of a variant."""

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from torch import nn

from nucsam_monai.networks.sam.layers import use_float32_norms
from nucsam_monai.networks.sam.variants import SAMVariant

PLACE_TERMS = 6
"""Coefficients of a quadratic form in the plane: 1, x, y, x * x, x * y, y * y."""

_START_RADIUS = 0.75
_START_HEIGHT = 2.0


class FineMaskDecoder(MaskDecoder):
    """The mask decoder of variants with a fine map: each mask token has a second kernel, for that map.

    A kernel alone cannot tell a nucleus from its neighbour, because a convolutional map says the same of both, and the
    cells of the embedding are as large as a nucleus. So the token also gives a quadratic form in the distance from the
    place of the prompt, as CondInst gives its kernels relative coordinates (Tian et al., 2020). It starts as a round
    hill: positive up to three quarters of a cell from the prompt, and the more negative the farther away.

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
        forms = [MLP(channels, channels, PLACE_TERMS, 3) for _ in range(self.num_mask_tokens)]
        slope = -_START_HEIGHT / _START_RADIUS**2
        for mlp in forms:
            last = mlp.layers[-1]
            nn.init.zeros_(last.weight)
            last.bias.data = torch.tensor([_START_HEIGHT, 0, 0, slope, 0, slope])
        self.place_hypernetworks_mlps = nn.ModuleList(forms)


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
