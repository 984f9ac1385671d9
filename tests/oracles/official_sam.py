"""The official SAM code, brought to any image size in the plainest way, as the reference of our encoder."""

from functools import partial

import torch
from segment_anything.modeling import ImageEncoderViT
from segment_anything.modeling.image_encoder import Block, window_partition, window_unpartition
from torch import Tensor, nn

from nucsam_monai.networks.sam.encoder import BlockAdapter, ImageEncoder


def official_encoder(encoder: ImageEncoder) -> ImageEncoderViT:
    """Build the official encoder around the same tensors (no copy)."""
    variant = encoder.variant
    with torch.device("meta"):
        official = ImageEncoderViT(
            img_size=variant.pos_grid * variant.patch,
            patch_size=variant.patch,
            depth=variant.depth,
            embed_dim=variant.width,
            num_heads=variant.heads,
            mlp_ratio=variant.mlp_ratio,
            out_chans=variant.embed_channels,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=True,
            window_size=variant.window,
            global_attn_indexes=variant.global_blocks,
        )
    official.load_state_dict(encoder.state_dict(), strict=True, assign=True)
    return official


def run_official_encoder(official: ImageEncoderViT, image: Tensor) -> Tensor:
    """Run at any size: bicubic position table; the official code interpolates its relative tables itself."""
    tokens = official.patch_embed(image)
    table = official.pos_embed.permute(0, 3, 1, 2)
    if table.shape[2:] != tokens.shape[1:3]:
        table = torch.nn.functional.interpolate(
            table, size=tuple(tokens.shape[1:3]), mode="bicubic", align_corners=False, antialias=False
        )
    tokens = tokens + table.permute(0, 2, 3, 1)
    for block in official.blocks:
        tokens = block(tokens)
    return official.neck(tokens.permute(0, 3, 1, 2))


def run_official_block(block: Block, tokens: Tensor, adapter: BlockAdapter) -> Tensor:
    """The official block, statement by statement, with the hooks written where the papers have them."""
    attended = block.norm1(tokens)
    if block.window_size:
        size = attended.shape[1:3]
        attended, padded = window_partition(attended, block.window_size)
        attended = adapter.windows(block.attn(attended))
        attended = window_unpartition(attended, block.window_size, padded, tuple(size))
    else:
        attended = adapter.windows(block.attn(attended))
    tokens = tokens + adapter.after_attention(attended)
    normed = block.norm2(tokens)
    beside = adapter.beside_mlp(normed)
    tokens = tokens + block.mlp(normed)
    if beside is not None:
        tokens = tokens + beside
    return adapter.after_block(tokens)
