"""The two-way transformer of the mask decoder, for the prompts of several images."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling import TwoWayTransformer
from segment_anything.modeling.transformer import TwoWayAttentionBlock
from torch import Tensor
from torch.nn import functional

from nucsam_monai.networks.sam.prompt_attention import (
    attend,
    attend_to_image,
    attend_to_tokens,
    join_heads,
    mix_tokens,
    split_heads,
)


class ImageSide(NamedTuple):
    """What the first layer needs of B images, whichever prompts ask.

    Attributes:
        cells: ``(B, P, C)`` embedding with the dense prompt embedding added.
        key: ``(B, H, P, D / H)`` keys for the prompt tokens.
        value: ``(B, H, P, D / H)`` values for the prompt tokens.
        query: ``(B, H, P, D / H)`` scaled queries to the prompt tokens.
    """

    cells: Tensor
    key: Tensor
    value: Tensor
    query: Tensor


def image_side(transformer: TwoWayTransformer, cells: Tensor, code: Tensor) -> ImageSide:
    """Project B images ``(B, P, C)`` with position code ``(1, P, C)`` for the first layer, once per image."""
    first = transformer.layers[0]
    to_image, to_token = first.cross_attn_token_to_image, first.cross_attn_image_to_token
    placed = cells + code
    query = split_heads(to_token.q_proj(placed), to_token.num_heads)
    return ImageSide(
        cells,
        split_heads(to_image.k_proj(placed), to_image.num_heads),
        split_heads(to_image.v_proj(cells), to_image.num_heads),
        query / math.sqrt(query.shape[-1]),
    )


def run_two_way(
    transformer: TwoWayTransformer,
    images: ImageSide | Tensor,
    code: Tensor,
    prompts: Tensor,
    counts: Sequence[int],
    answers: int,
) -> tuple[Tensor, Tensor]:
    """Run the transformer ("Segment Anything", appendix A) with the image side of layer one shared.

    Args:
        transformer: the layers.
        images: the projected images, or the cells ``(N, P, C)`` where every prompt has a dense embedding of
            its own.
        code: ``(1, P, C)`` position code of the cells.
        prompts: ``(N, T, C)`` tokens in the order of the images.
        counts: number of prompts of each image, with sum N.
        answers: number of leading tokens whose result is asked for.

    Returns:
        Tokens ``(N, answers, C)`` and cells ``(N, P, C)``.
    """
    first, *others = transformer.layers
    if isinstance(images, ImageSide):
        queries, cells = _shared_layer(first, prompts, images, counts)
    else:
        queries, cells = _layer(first, prompts, prompts, images, code)
    for layer in others:
        queries, cells = _layer(layer, queries, prompts, cells, code)
    queries = queries[:, :answers]
    asking = queries + prompts[:, :answers]
    found = attend_to_image(transformer.final_attn_token_to_image, asking, cells + code, cells)
    return transformer.norm_final_attn(queries + found), cells


def _layer(
    layer: TwoWayAttentionBlock, queries: Tensor, prompts: Tensor, cells: Tensor, code: Tensor
) -> tuple[Tensor, Tensor]:
    """Run a layer with cells ``(N, P, C)`` of each prompt's own."""
    queries = _attend_to_each_other(layer, queries, prompts)
    placed = cells + code
    found = attend_to_image(layer.cross_attn_token_to_image, queries + prompts, placed, cells)
    queries = _learn(layer, queries, found)
    told = attend_to_tokens(layer.cross_attn_image_to_token, placed, queries + prompts, queries)
    return queries, layer.norm4(
        told.add_(cells)
    )  # in place: a new tensor of this size costs as much as the sum


def _shared_layer(
    layer: TwoWayAttentionBlock, prompts: Tensor, images: ImageSide, counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Run the first layer, whose cells are the same for all prompts of an image."""
    queries = _attend_to_each_other(layer, prompts, prompts)
    queries = _learn(layer, queries, _ask_images(layer, images, queries + prompts, counts))
    told = _tell_images(layer, images, queries + prompts, queries, counts)
    return queries, layer.norm4(told.add_(_per_prompt(images.cells, counts)))


def _learn(layer: TwoWayAttentionBlock, queries: Tensor, found: Tensor) -> Tensor:
    queries = layer.norm2(queries + found)
    return layer.norm3(queries + layer.mlp(queries))


def _attend_to_each_other(layer: TwoWayAttentionBlock, queries: Tensor, prompts: Tensor) -> Tensor:
    if layer.skip_first_layer_pe:
        return layer.norm1(attend(layer.self_attn, queries, queries, queries))
    placed = queries + prompts
    return layer.norm1(queries + attend(layer.self_attn, placed, placed, queries))


def _ask_images(
    layer: TwoWayAttentionBlock, images: ImageSide, asking: Tensor, counts: Sequence[int]
) -> Tensor:
    """Attend from the tokens to the image; the tokens of all prompts of an image form one sequence."""
    attention = layer.cross_attn_token_to_image
    query = attention.q_proj(asking)
    mixed = [
        join_heads(
            functional.scaled_dot_product_attention(
                split_heads(part.flatten(0, 1).unsqueeze(0), attention.num_heads), key, value
            )
        )[0]
        for part, key, value in zip(
            query.split(list(counts)), images.key.split(1), images.value.split(1), strict=True
        )
        if len(part)
    ]
    return attention.out_proj(torch.cat(mixed).unflatten(0, asking.shape[:2]))


def _tell_images(
    layer: TwoWayAttentionBlock, images: ImageSide, asking: Tensor, queries: Tensor, counts: Sequence[int]
) -> Tensor:
    """Attend from the image to the tokens of each prompt."""
    attention = layer.cross_attn_image_to_token
    heads = attention.num_heads
    scores = []
    for part, query in zip(attention.k_proj(asking).split(list(counts)), images.query, strict=True):
        key = part.flatten(0, 1).unflatten(1, (heads, -1)).transpose(0, 1)
        # (H, n * T, D / H) @ (H, D / H, P) -> (n, H * T, P)
        scores.append((key @ query.mT).unflatten(1, part.shape[:2]).transpose(0, 1).flatten(1, 2))
    return mix_tokens(attention, torch.cat(scores), queries)


def _per_prompt(images: Tensor, counts: Sequence[int]) -> Tensor:
    """Give each prompt its image: ``(B, P, C)`` to ``(N, P, C)``."""
    if len(images) == 1:
        return images  # broadcasts
    index = [image for image, count in enumerate(counts) for _ in range(count)]
    return images.index_select(0, torch.tensor(index, device=images.device))
