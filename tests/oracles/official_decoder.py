"""The official mask decoder, image by image, as the reference of prompted decoding."""

from collections.abc import Sequence

import torch
from segment_anything.modeling import MaskDecoder, TwoWayTransformer
from torch import Tensor

from nucsam_monai.networks.sam.variants import SAMVariant


def official_decoder(variant: SAMVariant, weights: dict[str, Tensor]) -> MaskDecoder:
    """Build the official decoder with its own layers and a copy of the weights."""
    decoder = MaskDecoder(
        transformer_dim=variant.embed_channels,
        transformer=TwoWayTransformer(
            depth=variant.decoder_depth,
            embedding_dim=variant.embed_channels,
            num_heads=variant.decoder_heads,
            mlp_dim=variant.decoder_mlp_width,
        ),
        iou_head_depth=variant.iou_head_depth,
        iou_head_hidden_dim=variant.iou_head_width,
    )
    decoder.load_state_dict(weights)
    return decoder


def decode_image_by_image(
    decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    counts: Sequence[int],
    *,
    multimask: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run ``predict_masks`` once per image with prompts; return logits, IoU and up-scaled features."""
    logits, iou, upscaled = [], [], []
    handle = decoder.output_upscaling.register_forward_hook(lambda *call: upscaled.append(call[2]))
    start = 0
    for image, count in enumerate(counts):
        prompts, start = slice(start, start + count), start + count
        if not count:
            continue
        masks, qualities = decoder(
            image_embeddings=embedding[image : image + 1],
            image_pe=image_pe,
            sparse_prompt_embeddings=sparse[prompts],
            dense_prompt_embeddings=dense[prompts],
            multimask_output=multimask,
        )
        logits.append(masks)
        iou.append(qualities)
    handle.remove()
    return torch.cat(logits), torch.cat(iou), torch.cat(upscaled)
