"""How many prompts to decode at a time."""

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor

from nucsam_monai.networks.sam.mask_decoder import FineMaskDecoder

CACHED_CELLS = 2**13
"""Image cells of all prompts in one chunk on a CPU: 32 prompts at 16 x 16 cells, 2 at 64 x 64.

Measured with ViT-B on one core: larger chunks take up to a third more time per prompt, because their tensors
leave the caches and their memory goes back to the system after every operation; smaller ones make the matrix
products of the prompt tokens inefficient.
"""

DEVICE_CELLS = 2**18
"""The same on other devices: 1024 prompts at 16 x 16 cells, 64 at 64 x 64; more would not be faster."""

USED_SHARE = 0.5
"""Part of a device's free memory that a chunk may take: the rest is for fragments and for its results."""


def bytes_per_prompt(
    mask_decoder: MaskDecoder,
    grid: tuple[int, int],
    *,
    tokens: int,
    element_bytes: int = 4,
    upscaled: bool = False,
) -> int:
    """Estimate the memory that decoding one more prompt takes at the peak of inference.

    With P = h * w cells of C channels the peak lies in the up-scaling, whose second half has 2 * P * C
    numbers before and after its activation, beside P * C in its first half and P * C cells; mask prompts
    keep P * C cells from before the transformer, and 2 * P * C are added for copies. The scores of T tokens
    in H heads and their softmax take 2 * T * H * P.
    A returned feature map has another 2 * P * C. With a fine map the logits of the three masks are 64 times P each,
    three times over. Under autocast the estimate for float32 is an upper bound.

    Args:
        mask_decoder: the decoder.
        grid: height and width of the image embedding in cells.
        tokens: prompt tokens of a prompt.
        element_bytes: bytes of one number.
        upscaled: whether feature maps are returned.
    """
    cells = grid[0] * grid[1]
    channels = mask_decoder.transformer_dim
    heads = mask_decoder.transformer.num_heads
    all_tokens = 1 + mask_decoder.num_mask_tokens + tokens
    numbers = cells * ((11 if upscaled else 9) * channels + 2 * all_tokens * heads)
    if isinstance(mask_decoder, FineMaskDecoder):
        numbers += cells * 64 * 3 * 3
    return numbers * element_bytes


def prompts_per_chunk(
    mask_decoder: MaskDecoder, embedding: Tensor, *, tokens: int, upscaled: bool = False
) -> int:
    """Choose how many prompts to decode at a time, at least one.

    On a CPU the caches decide, and a chunk stays below a hundred megabytes whatever the image's size. On a
    GPU the free memory decides, up to a number of prompts that keeps it busy. Where gradients are recorded
    memory does not count: what the backward pass needs is kept in any case.

    Args:
        mask_decoder: the decoder.
        embedding: ``(B, C, h, w)`` image embeddings; their device and type count.
        tokens: prompt tokens of a prompt.
        upscaled: whether feature maps are returned.
    """
    grid = (embedding.shape[2], embedding.shape[3])
    cells = grid[0] * grid[1]
    if embedding.device.type == "cpu":
        return max(1, CACHED_CELLS // cells)
    most = max(1, DEVICE_CELLS // cells)
    if embedding.device.type != "cuda" or torch.is_grad_enabled():
        return most
    # What PyTorch holds without using it counts as free.
    free, _ = torch.cuda.mem_get_info(embedding.device)
    free += torch.cuda.memory_reserved(embedding.device) - torch.cuda.memory_allocated(embedding.device)
    # Under autocast the embedding may be of half precision while the decoder's norms are not.
    element_bytes = max(embedding.element_size(), mask_decoder.iou_token.weight.element_size())
    needed = bytes_per_prompt(
        mask_decoder, grid, tokens=tokens, element_bytes=element_bytes, upscaled=upscaled
    )
    return max(1, min(most, int(USED_SHARE * free) // needed))
