"""Random weights from which a mask decoder learns where a point is."""

import torch
from segment_anything.modeling import MaskDecoder

SHARPNESS = 3.0
"""Factor on the weights of queries and keys: the attention between a point and the cells around it stands out."""

LOUDNESS = 6.0
"""Factor on what a cell takes over from the tokens, which would else be lost beside its own features."""


@torch.no_grad()
def start_localised(decoder: MaskDecoder) -> None:
    """Let prompt tokens and image cells attend to each other by their distance, before any training.

    Tokens and cells carry the same code of their positions, but independent random projections of queries and keys
    hide how similar two codes are, and a decoder trained from scratch answers with empty masks for a long time
    until it has found out. With the same projection for both, a point and the cells near it agree from the start.
    Only for weights that are drawn at random: pretrained ones know better.

    Args:
        decoder: changed in place; names and shapes of its weights stay.

    Example:
        >>> from nucsam_monai.networks.sam import build_sam
        >>> start_localised(build_sam("vit_tiny", 256).mask_decoder)
    """
    for layer in decoder.transformer.layers:
        for attention in (layer.cross_attn_token_to_image, layer.cross_attn_image_to_token):
            attention.q_proj.weight.mul_(SHARPNESS)
            attention.k_proj.load_state_dict(attention.q_proj.state_dict())
        layer.cross_attn_image_to_token.out_proj.weight.mul_(LOUDNESS)
    last = decoder.transformer.final_attn_token_to_image
    last.k_proj.load_state_dict(last.q_proj.state_dict())
