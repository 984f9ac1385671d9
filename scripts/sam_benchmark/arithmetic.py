"""Multiply-accumulate operations of the stock SAM from its sizes alone, to check what a counter counts."""

import math

from nucsam_monai.networks.sam import SAMVariant, sam_variant
from sam_benchmark.cases import Case


def stock_forward_macs(case: Case) -> int:
    """Return the operations of one stock forward pass, matrix products and convolutions only."""
    variant = sam_variant(case.variant)
    side, _ = variant.grid((case.size, case.size))
    if case.part == "encoder":
        return case.batch * _encoder_macs(variant, side)
    return case.prompts * _decoder_macs(variant, side)


def _encoder_macs(variant: SAMVariant, side: int) -> int:
    width, channels = variant.width, variant.embed_channels
    blocks = sum(
        _block_macs(variant, side, 0 if index in variant.global_blocks else variant.window)
        for index in range(variant.depth)
    )
    neck = side**2 * (width * channels + 9 * channels**2)
    return _stem_macs(variant, side) + blocks + neck


def _block_macs(variant: SAMVariant, side: int, window: int) -> int:
    width, tokens = variant.width, side**2
    attended = (math.ceil(side / window) * window) ** 2 if window else tokens
    keys_side = window or side
    projections = 4 * attended * width**2
    attention = 2 * attended * keys_side**2 * width
    relative_positions = 2 * attended * keys_side * width
    mlp = 2 * tokens * width * int(width * variant.mlp_ratio)
    return projections + attention + relative_positions + mlp


def _stem_macs(variant: SAMVariant, side: int) -> int:
    if variant.stem == "patch":
        return side**2 * 3 * variant.patch**2 * variant.width
    steps, macs, channels = variant.patch.bit_length() - 1, 0, 3
    for step in range(steps):
        wider = variant.width // 2 ** (steps - 1 - step)
        pixels = (side * 2 ** (steps - 1 - step)) ** 2
        macs += pixels * 9 * wider * (channels + (wider if step > 0 else 0))
        channels = wider
    return macs


def _decoder_macs(variant: SAMVariant, side: int) -> int:
    """Operations for one prompt of one point: iou token, four mask tokens, the point and its padding."""
    channels, tokens, pixels = variant.embed_channels, 7, side**2
    inner = channels // 2
    self_attention = 4 * tokens * channels**2 + 2 * tokens**2 * channels
    cross_attention = 2 * (tokens + pixels) * channels * inner + 2 * tokens * pixels * inner
    layer = self_attention + 2 * cross_attention + 2 * tokens * channels * variant.decoder_mlp_width
    upscaling = pixels * channels**2 + 4 * pixels * channels**2 // 8
    hypernetworks = 4 * (2 * channels**2 + channels * channels // 8)
    masks = 4 * 16 * pixels * channels // 8
    head = variant.iou_head_width * (channels + (variant.iou_head_depth - 2) * variant.iou_head_width + 4)
    return variant.decoder_depth * layer + cross_attention + upscaling + hypernetworks + masks + head
