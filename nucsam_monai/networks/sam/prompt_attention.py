"""Attention between a few prompt tokens and many image cells, with the large projections moved to the tokens."""

import math

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional


def attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute what the official layer computes, through PyTorch's fused kernels.

    Args:
        attention: the layer.
        query: ``(N, Q, C)``.
        key: ``(N, K, C)``.
        value: ``(N, K, C)``.

    Returns:
        ``(N, Q, C)``.
    """
    heads = attention.num_heads
    mixed = functional.scaled_dot_product_attention(
        split_heads(attention.q_proj(query), heads),
        split_heads(attention.k_proj(key), heads),
        split_heads(attention.v_proj(value), heads),
    )
    return attention.out_proj(join_heads(mixed))


def attend_to_image(attention: Attention, tokens: Tensor, placed: Tensor, cells: Tensor) -> Tensor:
    """Let T tokens of each prompt attend to the P cells of the prompt's own image.

    A score is ``(W_q t) . (W_k c + b)`` with token t and cell c; it equals ``(W_k' W_q t) . c`` plus a number
    of the token alone. So the projection of P cells by ``W_k`` becomes one of T tokens by its transpose, and
    likewise the cells are averaged before ``W_v`` is applied.

    Args:
        attention: the layer.
        tokens: ``(N, T, C)`` queries.
        placed: ``(N, P, C)`` keys: the cells with their position code.
        cells: ``(N, P, C)`` values.

    Returns:
        ``(N, T, C)``.
    """
    if not _folding_pays(attention, tokens.shape[1]):
        return attend(attention, tokens, placed, cells)
    heads = attention.num_heads
    query = split_heads(attention.q_proj(tokens), heads) / _root_of_head_width(attention)
    weights = _scores(query, attention.k_proj, placed).softmax(dim=-1)
    # (N, H * T, P) @ (N, P, C) -> (N, H, T, C)
    means = (weights @ cells).unflatten(1, (heads, -1))
    # Rows of a projection's weight belong to heads: (H, C / 2H, C).
    rows = attention.v_proj.weight.unflatten(0, (heads, -1))
    mixed = torch.einsum("nhtc,hdc->nthd", means, rows).flatten(2) + attention.v_proj.bias
    return attention.out_proj(mixed)


def attend_to_tokens(attention: Attention, placed: Tensor, tokens: Tensor, values: Tensor) -> Tensor:
    """Let the P cells of each prompt's own image attend to the prompt's T tokens.

    The same exchange as in :func:`attend_to_image`: keys are folded with ``W_q`` and values with ``W_out``.

    Args:
        attention: the layer.
        placed: ``(N, P, C)`` queries: the cells with their position code.
        tokens: ``(N, T, C)`` keys.
        values: ``(N, T, C)``.

    Returns:
        ``(N, P, C)``.
    """
    if not _folding_pays(attention, tokens.shape[1]):
        return attend(attention, placed, tokens, values)
    key = split_heads(attention.k_proj(tokens), attention.num_heads) / _root_of_head_width(attention)
    return mix_tokens(attention, _scores(key, attention.q_proj, placed), values)


def mix_tokens(attention: Attention, scores: Tensor, values: Tensor) -> Tensor:
    """Give each cell the mean of the tokens' projected values, weighted by softmax of scores.

    Args:
        attention: the layer.
        scores: ``(N, H * T, P)``, scaled.
        values: ``(N, T, C)``.

    Returns:
        ``(N, P, C)``.
    """
    heads = attention.num_heads
    weights = scores.unflatten(1, (heads, -1)).softmax(dim=2)
    projected = split_heads(attention.v_proj(values), heads)
    if not _folding_pays(attention, values.shape[1]):
        return attention.out_proj(join_heads(weights.mT @ projected))
    columns = attention.out_proj.weight.unflatten(1, (heads, -1))
    # The weights of a head add up to one, so a share of the bias in every head's values gives the bias.
    folded = torch.einsum("nhtd,chd->nhtc", projected, columns) + attention.out_proj.bias / heads
    return weights.flatten(1, 2).mT @ folded.flatten(1, 2)


def split_heads(tokens: Tensor, heads: int) -> Tensor:
    """Reshape ``(N, T, D)`` to ``(N, H, T, D / H)``."""
    return tokens.unflatten(2, (heads, -1)).transpose(1, 2)


def join_heads(tokens: Tensor) -> Tensor:
    """Reshape ``(N, H, T, D / H)`` to ``(N, T, D)``."""
    return tokens.transpose(1, 2).flatten(2)


def _scores(side: Tensor, projection: nn.Linear, cells: Tensor) -> Tensor:
    """Return ``side . projection(cells)`` as ``(N, H * T, P)`` without projecting the cells."""
    rows = projection.weight.unflatten(0, (side.shape[1], -1))
    offset = torch.einsum("nhtd,hd->nht", side, projection.bias.unflatten(0, (side.shape[1], -1)))
    folded = torch.einsum("nhtd,hdc->nhtc", side, rows)
    return torch.baddbmm(offset.flatten(1).unsqueeze(2), folded.flatten(1, 2), cells.mT)


def _root_of_head_width(attention: Attention) -> float:
    return math.sqrt(attention.internal_dim // attention.num_heads)


def _folding_pays(attention: Attention, tokens: int) -> bool:
    """Tell whether the tokens of all heads are fewer than the projection's channels.

    A projection that is more than a plain linear layer, e.g. one with a low-rank update, is not taken apart.
    """
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    plain = all(type(projection) is nn.Linear for projection in projections)
    return plain and tokens * attention.num_heads < attention.internal_dim
