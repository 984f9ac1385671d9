"""Masks for many prompts on several images at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from nucsam_monai.utils.errors import ConfigurationError


class DecodedMasks(NamedTuple):
    """The masks of N prompts.

    Attributes:
        logits: ``(N, M, 4h, 4w)`` mask logits, M = 1 or 3; a pixel is foreground above 0.
        iou: ``(N, M)`` predicted intersection over union of each mask.
        upscaled: ``(N, C / 8, 4h, 4w)`` image features after up-scaling, on request.
    """

    logits: Tensor
    iou: Tensor
    upscaled: Tensor | None = None


def decode_prompts(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    prompts_per_image: Tensor | Sequence[int],
    *,
    multimask: bool = False,
    return_upscaled: bool = False,
    chunk_size: int | None = None,
) -> DecodedMasks:
    """Decode prompts that belong to different images, each against its own image's embedding.

    The prompts of all images are concatenated in the order of the images; an image may have none, and all may
    have none. "Segment Anything" (Kirillov et al., 2023), appendix A, gives the decoder itself.

    Args:
        mask_decoder: the decoder of the embedding's variant.
        embedding: ``(B, C, h, w)`` image embeddings.
        image_pe: ``(1, C, h, w)`` position code of the embedding's cells.
        sparse: ``(N, T, C)`` prompt tokens.
        dense: ``(N, C, h, w)`` or ``(1, C, h, w)`` dense prompt embeddings.
        prompts_per_image: ``(B,)`` integers with sum N; on the CPU they cost no synchronisation.
        multimask: return the three ambiguity masks instead of the single mask.
        return_upscaled: also return the up-scaled feature map of each prompt.
        chunk_size: decode at most this many prompts at a time, which bounds the memory of inference; None
            decodes all at once.

    Raises:
        ConfigurationError: the numbers of images, prompts and counts do not fit together.

    Example:
        Two images with three prompts and none::

            decode_prompts(decoder, embedding, code, sparse, dense, [3, 0]).logits.shape  # (3, 1, 4h, 4w)
    """
    image_of_prompt = _image_of_prompt(prompts_per_image, images=len(embedding), prompts=len(sparse))
    if len(dense) not in (1, len(sparse)):
        raise ConfigurationError(f"dense: expected 1 or {len(sparse)} prompts, found {len(dense)}.")
    if chunk_size is not None and chunk_size < 1:
        raise ConfigurationError(f"chunk_size {chunk_size}: expected a positive number of prompts.")
    mask_tokens = slice(1, None) if multimask else slice(0, 1)
    if not len(sparse):
        return _no_masks(mask_decoder, embedding, mask_tokens, return_upscaled)
    size = chunk_size or len(sparse)
    chunks = [
        _decode_matched(
            mask_decoder,
            embedding.index_select(0, image_of_prompt[start : start + size].to(embedding.device)),
            image_pe,
            sparse[start : start + size],
            dense if len(dense) == 1 else dense[start : start + size],
            mask_tokens,
        )
        for start in range(0, len(sparse), size)
    ]
    logits, iou, upscaled = zip(*chunks, strict=True)
    return DecodedMasks(torch.cat(logits), torch.cat(iou), torch.cat(upscaled) if return_upscaled else None)


def _image_of_prompt(prompts_per_image: Tensor | Sequence[int], images: int, prompts: int) -> Tensor:
    """Return the index ``(N,)`` of each prompt's image.

    Always by repeating, also where there are as many prompts as images: with counts (0, 2) both prompts
    belong to the second image.
    """
    counts = torch.as_tensor(prompts_per_image, dtype=torch.long)
    if len(counts) != images or int(counts.sum()) != prompts or bool((counts < 0).any()):
        raise ConfigurationError(
            f"prompts_per_image {counts.tolist()}: expected one count for each of {images} images, "
            f"with sum {prompts}, the number of prompts."
        )
    return torch.arange(images, device=counts.device).repeat_interleave(counts, output_size=prompts)


def _decode_matched(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    mask_tokens: slice,
) -> tuple[Tensor, Tensor, Tensor]:
    """Decode N prompts with the N image embeddings that belong to them; return logits, IoU and features."""
    count, _, height, width = embedding.shape
    output_tokens = torch.cat([mask_decoder.iou_token.weight, mask_decoder.mask_tokens.weight])
    tokens = torch.cat([output_tokens.expand(count, -1, -1), sparse], dim=1)

    tokens, image = mask_decoder.transformer(embedding + dense, image_pe, tokens)
    # (N, h * w, C) -> (N, C, h, w) -> (N, C / 8, 4h, 4w)
    upscaled = mask_decoder.output_upscaling(image.transpose(1, 2).unflatten(2, (height, width)))

    chosen = range(mask_decoder.num_mask_tokens)[mask_tokens]
    hypernetworks = mask_decoder.output_hypernetworks_mlps
    kernels = torch.stack([hypernetworks[index](tokens[:, 1 + index]) for index in chosen], dim=1)
    # (N, M, C / 8) @ (N, C / 8, 4h * 4w) -> (N, M, 4h, 4w)
    logits = (kernels @ upscaled.flatten(2)).unflatten(2, upscaled.shape[2:])
    iou = mask_decoder.iou_prediction_head(tokens[:, 0])[:, mask_tokens]
    return logits, iou, upscaled


def _no_masks(
    mask_decoder: MaskDecoder, embedding: Tensor, mask_tokens: slice, return_upscaled: bool
) -> DecodedMasks:
    masks = len(range(mask_decoder.num_mask_tokens)[mask_tokens])
    height, width = 4 * embedding.shape[2], 4 * embedding.shape[3]
    upscaled = embedding.new_zeros((0, mask_decoder.transformer_dim // 8, height, width))
    return DecodedMasks(
        embedding.new_zeros((0, masks, height, width)),
        embedding.new_zeros((0, masks)),
        upscaled if return_upscaled else None,
    )
