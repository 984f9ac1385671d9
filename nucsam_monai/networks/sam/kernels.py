"""Compute SAM's linear layers and attentions with less work: packed, cached, folded."""

import math
from collections.abc import Callable, Hashable
from functools import cache
from typing import NamedTuple

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.utils.machine import processor_name


class _Entry(NamedTuple):
    source: Tensor  # shares the parameter's memory: while it lives, no other tensor can have its address
    version: int
    arguments: tuple[Hashable, ...]
    result: Tensor


class FrozenCache:
    """The last result of a function of one frozen parameter.

    It is recomputed when the parameter was replaced, moved, cast or written in place (``load_state_dict``
    and optimizers do), and when the other arguments differ. Only writing through ``parameter.data`` leaves no
    trace in PyTorch and is not noticed. Trainable parameters are never cached, nor is anything while a graph
    is recorded, where a kept tensor would become a constant. Copies and pickles start empty.

    Example:
        >>> squared = FrozenCache(torch.square)
        >>> weight = nn.Parameter(torch.full((1,), 3.0), requires_grad=False)
        >>> squared(weight) is squared(weight)
        True
    """

    def __init__(self, function: Callable[..., Tensor]) -> None:
        self._function = function
        self._entry: _Entry | None = None

    def __call__(self, parameter: Tensor, *arguments: Hashable) -> Tensor:
        """Return ``function(parameter, *arguments)``; the caller must not write into it."""
        if is_recording() or not _is_frozen(parameter):
            return self._function(parameter, *arguments)
        entry = self._entry  # read once: another thread may replace it meanwhile
        if entry is None or entry.arguments != arguments or not _is_unchanged(parameter, entry):
            # A tensor made in inference mode could not be used for training later.
            with torch.inference_mode(False), torch.no_grad():
                result = self._function(parameter, *arguments)
                entry = _Entry(parameter.detach(), parameter._version, arguments, result)
            self._entry = entry
        return entry.result

    def __reduce__(self) -> tuple[type["FrozenCache"], tuple[Callable[..., Tensor]]]:
        return FrozenCache, (self._function,)


def is_recording() -> bool:
    """Return whether a graph is traced, exported or compiled."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()  # type: ignore[attr-defined]


def _is_frozen(parameter: Tensor) -> bool:
    # Tensor subclasses and function transforms put other types in a parameter's place; they have no memory.
    return type(parameter) is nn.Parameter and not parameter.requires_grad and not parameter.is_inference()


def _is_unchanged(parameter: Tensor, entry: _Entry) -> bool:
    return (
        parameter._version == entry.version
        and parameter.data_ptr() == entry.source.data_ptr()
        and parameter.dtype == entry.source.dtype
        and parameter.device == entry.source.device
    )


MOST_ROWS = 2**10
"""Most input rows that a packed copy is made for; with more the products themselves take nearly all the time."""


class _Use(NamedTuple):
    rows: int
    dtype: torch.dtype


class _Packed(NamedTuple):
    source: Tensor  # shares the weight's memory: while it lives, no other tensor can have its address
    version: int
    use: _Use
    weight: Tensor


class PackedLinear(nn.Linear):
    """``nn.Linear`` with the same parameters and values, faster in inference on a CPU with MKL or oneDNN.

    A product of a few hundred rows spends a good part of its time on bringing the weights into blocks, every time,
    and is shared badly among threads; under autocast to bfloat16 they are cast first. Here the second call in a row
    with the same number of rows and type keeps the blocks for the following ones, at the price of a second copy of the
    weights. Training, other types and devices, tracing and compiling use the plain layer. The copy is dropped when the
    weight changes; only writing through ``weight.data`` leaves no trace in PyTorch and is not noticed.

    Args:
        in_features: as of ``nn.Linear``.
        out_features: as of ``nn.Linear``.
        bias: as of ``nn.Linear``.
        gelu: return the GELU of the product, which oneDNN computes before the product leaves the registers.

    Example:
        >>> layer = PackedLinear(4, 2).eval()
        >>> with torch.inference_mode():
        ...     layer(torch.ones(3, 4)).shape
        torch.Size([3, 2])
    """

    _packed: _Packed | None = None
    _previous_use: _Use | None = None

    def __init__(self, in_features: int, out_features: int, bias: bool = True, *, gelu: bool = False) -> None:
        super().__init__(in_features, out_features, bias)
        self.gelu = gelu

    def forward(self, input: Tensor) -> Tensor:
        """Multiply ``(..., in_features)``; the result is ``(..., out_features)``."""
        autocast = torch.is_autocast_enabled("cpu")
        use = _Use(
            input.numel() // self.in_features, torch.get_autocast_dtype("cpu") if autocast else torch.float32
        )
        if self._is_inference(input, use):
            weight = self._packed_for(use)
            if _onednn_multiplies(use.dtype):
                weight = self.weight.to(use.dtype) if weight is None else weight
                bias = None if self.bias is None else self.bias.to(use.dtype)
                activation = "gelu" if self.gelu else "none"
                return torch.ops.mkldnn._linear_pointwise(
                    input.to(use.dtype), weight, bias, activation, [], "none"
                )
            if weight is not None:
                return self._activated(
                    torch.ops.mkl._mkl_linear(input, weight, self.weight, self.bias, use.rows)
                )
        return self._activated(F.linear(input, self.weight, self.bias))

    def _activated(self, product: Tensor) -> Tensor:
        return F.gelu(product) if self.gelu else product

    def _is_inference(self, input: Tensor, use: _Use) -> bool:
        """Return whether a faster product can take the plain one's place."""
        return (
            use.rows > 1
            and not torch.is_grad_enabled()
            and not is_recording()
            and type(self.weight) is nn.Parameter  # function transforms put other types in its place
            and not self.weight.is_inference()  # such tensors do not count their changes
            and self.weight.is_cpu
            and input.is_cpu
            and self.weight.dtype is torch.float32
            and input.dtype in (torch.float32, use.dtype)
            and (_onednn_multiplies(use.dtype) or (use.dtype is torch.float32 and _mkl_packs()))
        )

    def _packed_for(self, use: _Use) -> Tensor | None:
        """Return the packed weight, None where there is none for this use or not yet."""
        packed = self._packed  # read once: another thread may replace it meanwhile
        if packed is None or packed.use != use or not self._is_current(packed):
            if use != self._previous_use or use.rows > MOST_ROWS:
                self._previous_use = use
                return None
            packed = self._pack(use)
        return packed.weight

    def _is_current(self, packed: _Packed) -> bool:
        return packed.version == self.weight._version and packed.source.data_ptr() == self.weight.data_ptr()

    def _pack(self, use: _Use) -> _Packed:
        """Make the copy and keep it, where a change of the weight could be seen."""
        with torch.inference_mode(False), torch.no_grad():
            source = self.weight.detach()
            if _onednn_multiplies(use.dtype):
                weight = torch.ops.mkldnn._reorder_linear_weight(source.to(use.dtype), use.rows)
            else:
                weight = torch.ops.mkl._mkl_reorder_linear_weight(source, use.rows)
        packed = _Packed(source, self.weight._version, use, weight)
        self._packed = packed
        return packed

    def __getstate__(self) -> dict[str, object]:
        """Leave the copy out of copies and pickles: it belongs to this machine's processor."""
        return {name: value for name, value in self.__dict__.items() if name != "_packed"}


def _mkl_packs() -> bool:
    return torch.backends.mkl.is_available() and hasattr(torch.ops.mkl, "_mkl_linear")


@cache
def onednn_has(operator: str, dtype: torch.dtype) -> bool:
    """Return whether oneDNN is there with an operator of ``torch.ops.mkldnn`` for a type."""
    operators = torch.ops.mkldnn
    if not (torch.backends.mkldnn.is_available() and hasattr(operators, operator)):
        return False
    return dtype is torch.float32 or (dtype is torch.bfloat16 and bool(operators._is_mkldnn_bf16_supported()))


@cache
def _onednn_multiplies(dtype: torch.dtype) -> bool:
    """Return whether oneDNN multiplies best: bfloat16 wherever it can, float32 on AMD's processors (by a tenth)."""
    return onednn_has("_linear_pointwise", dtype) and (dtype is torch.bfloat16 or "AMD" in processor_name())


def relative_position_terms(query: Tensor, positions_h: Tensor, positions_w: Tensor) -> tuple[Tensor, Tensor]:
    """Return the two parts of the decomposed relative position term of the attention logits.

    "MViTv2" (Li et al., 2022), Eq. 4: ``q . R_h[i - k] + q . R_w[j - l]`` for a query at (i, j) and a key at
    (k, l). The query is the unscaled one.

    Args:
        query: ``(..., h, w, C)``.
        positions_h: ``(rows, rows, C)`` from :func:`relative_positions`, with at least ``h`` rows.
        positions_w: ``(columns, columns, C)`` with at least ``w`` columns.

    Returns:
        ``(..., h, w, rows)`` and ``(..., h, w, columns)``: the term of each row and each column of keys.
    """
    height, width = query.shape[-3:-1]
    along_h = torch.einsum("...ijc,ikc->...ijk", query, positions_h[:height])
    along_w = torch.einsum("...ijc,jlc->...ijl", query, positions_w[:width])
    return along_h, along_w


def padding_term(along_h: Tensor, along_w: Tensor) -> Tensor:
    """Merge the position terms of all padded cells of a window into that of one key.

    Padded cells have the same key and value, so that in the softmax they act as one key whose position
    term is the logarithm of the sum of the exponentials of theirs: that sum falls into a product per block
    of rows and columns, and no padded cell is looked at.

    Args:
        along_h: ``(..., h, w, rows)`` from :func:`relative_position_terms`, for the ``h`` x ``w`` real tokens.
        along_w: ``(..., h, w, columns)``; ``rows`` x ``columns`` is the whole window.

    Returns:
        ``(..., h, w, 1)``.
    """
    height, width = along_h.shape[-3:-1]
    along_h, along_w = along_h.float(), along_w.float()
    beside = along_h.logsumexp(-1, keepdim=True) + along_w[..., width:]
    below = along_w[..., :width].logsumexp(-1, keepdim=True) + along_h[..., height:]
    return torch.cat([beside, below], dim=-1).logsumexp(-1, keepdim=True)


def folded_attention(
    qkv: Tensor, heads: int, positions_h: Tensor, positions_w: Tensor, padding: Tensor | None = None
) -> Tensor:
    """Attend among the tokens of each window with decomposed relative positions.

    The query at (i, j) is ``[s q, term of every key row, term of every key column]`` and the key at (k, l) is
    ``[k, one-hot k, one-hot l]``; their product is ``s q . k + row term + column term``. Attention at scale 1
    over them needs no mask, whose gradient keeps PyTorch from its fused kernels, and with more than a few keys
    never makes a tensor with an entry per pair. A CPU without gradients adds the terms to the scores of some queries at
    a time instead, see :func:`~nucsam_monai.networks.sam.kernels._attend_in_pieces`.

    Where the windows are cut by the border of the grid, all padded cells together are one more key, which
    has a component of its own (see :func:`~nucsam_monai.networks.sam.kernels.padding_term`).

    Args:
        qkv: ``(..., h, w, 3 * heads * C)`` queries, keys and values of one window after another.
        heads: attention heads.
        positions_h: ``(rows, rows, C)`` relative positions along the height of a whole window.
        positions_w: ``(columns, columns, C)`` along its width.
        padding: ``(3 * heads * C,)`` query, key and value of the padded cells; needed where ``h < rows`` or
            ``w < columns``.

    Returns:
        ``(..., h, w, heads * C)``.
    """
    height, width = qkv.shape[-3:-1]
    # (..., h, w, 3 * heads * C) -> 3 x (..., heads, h, w, C)
    query, key, value = qkv.unflatten(-1, (3, heads, -1)).movedim((-3, -2), (0, -4)).unbind(0)
    channels = query.shape[-1]
    along_h, along_w = relative_position_terms(query, positions_h, positions_w)
    terms = [along_h[..., :height], along_w[..., :width]]
    padded = None
    if padding is not None:
        terms.append(padding_term(along_h, along_w).to(query.dtype))
        padded = padding.to(key.dtype).reshape(3, heads, 1, channels)[1:]
    in_pieces = query.is_cpu and query.dtype in (torch.float32, torch.bfloat16)
    if in_pieces and not torch.is_grad_enabled() and not is_recording():
        query, key, value, added = (
            _flatten_cells(cells) for cells in (query, key, value, torch.cat(terms, dim=-1))
        )
        attended = _attend_in_pieces(query, key, value, added, padded, (height, width))
    else:
        wide_query = torch.cat([query * channels**-0.5, *terms], dim=-1)
        extra = wide_query.shape[-1] - channels
        one_hot = F.pad(_one_hot_positions(height, width, like=key), (0, extra - height - width))
        wide_key = _flatten_cells(torch.cat([key, one_hot.expand(*key.shape[:-1], extra)], dim=-1))
        value = _flatten_cells(value)
        if padded is not None:
            own = F.pad(F.pad(padded[0], (0, extra - 1)), (0, 1), value=1.0)
            wide_key, value = _append_cell(wide_key, own), _append_cell(value, padded[1])
        attended = _attend_unscaled(_flatten_cells(wide_query), wide_key, value)
    # (N, heads, h * w, C) -> (..., h, w, heads * C)
    return attended.transpose(1, 2).reshape(*qkv.shape[:-1], heads * channels)


_PIECE = 2**19
"""Scores that a CPU makes at once, which its caches hold, unless those of few queries alone are more (measured)."""

_FEWEST_QUERIES = 512

_VECTOR = 32
"""Columns from which on position terms are added, and not multiplied: shorter rows leave the registers half empty."""


def _attend_in_pieces(
    query: Tensor, key: Tensor, value: Tensor, terms: Tensor, padded: Tensor | None, size: tuple[int, int]
) -> Tensor:
    """Attend with the scores of some queries at a time.

    Measured with AVX512-BF16 at 64 x 64 tokens this takes half of the time that PyTorch's kernel needs for queries and
    keys that the terms make three times as wide, in bfloat16 a third; in windows of 14 x 14 tokens 80 % and 55 %.

    Args:
        query: ``(N, heads, P, C)``, of the P cells of each window.
        key: ``(N, heads, P, C)``.
        value: ``(N, heads, P, C)``.
        terms: ``(N, heads, P, T)`` position terms of each query: of all rows, of all columns, of the padded cells.
        padded: ``(2, heads, 1, C)`` key and value of the padded cells, if there are any.
        size: rows and columns of a window, whose product is P.

    Returns:
        ``(N, heads, P, C)``.
    """
    shape, scale = query.shape, query.shape[-1] ** -0.5
    places = _one_hot_positions(*size, like=key).flatten(0, 1)
    if padded is not None:
        key, value = _append_cell(key, padded[0]), _append_cell(value, padded[1])
        places = torch.block_diag(places, places.new_ones(1, 1))
    query, key, value, terms = (part.flatten(0, 1) for part in (query, key, value, terms))
    attended = torch.empty_like(query, memory_format=torch.contiguous_format)
    heads = max(1, _PIECE // (query.shape[1] * key.shape[1]))
    rows = max(_FEWEST_QUERIES, _PIECE // key.shape[1])
    for first in range(0, len(query), heads):
        some = slice(first, first + heads)
        for top in range(0, query.shape[1], rows):
            here = some, slice(top, top + rows)
            scores = _position_scores(terms[here], places, size[1])
            scores.baddbmm_(query[here], key[some].mT, alpha=scale)
            attended[here] = scores.softmax(dim=-1) @ value[some]
    return attended.view(shape)


def _position_scores(terms: Tensor, places: Tensor, width: int) -> Tensor:
    """Return the sum of the terms of every query and key ``(..., Q, K)``."""
    if width < _VECTOR or len(places) % width:  # a cut window has one more key
        return terms @ places.mT
    along_h, along_w = terms.split([len(places) // width, width], dim=-1)
    return (along_h[..., :, None] + along_w[..., None, :]).flatten(-2)


_MOST_KEYS = 256
"""Most keys of an attention whose weights are kept for its gradient."""


def _attend_unscaled(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from ``(N, H, Q, C)`` queries at scale 1 to values ``(N, H, K, C')`` of fewer channels: ``(N, H, Q, C')``.

    In bfloat16 on a CPU the gradient of PyTorch's fused kernel takes two to five times as long as that of plain
    products with few keys. Without gradients :func:`_attend_in_pieces` is called instead.
    """
    if query.is_cpu and query.dtype is torch.bfloat16 and key.shape[2] <= _MOST_KEYS:
        return (query @ key.mT).softmax(dim=-1) @ value
    extra = query.shape[-1] - value.shape[-1]
    attended = F.scaled_dot_product_attention(query, key, F.pad(value, (0, extra)), scale=1.0)  # of one width
    return attended[..., : value.shape[-1]]


def _one_hot_positions(height: int, width: int, like: Tensor) -> Tensor:
    """Return ``(h, w, h + w)``: the one-hot row and the one-hot column of each cell."""
    rows = torch.eye(height, dtype=like.dtype, device=like.device)[:, None].expand(-1, width, -1)
    columns = torch.eye(width, dtype=like.dtype, device=like.device)[None].expand(height, -1, -1)
    return torch.cat([rows, columns], dim=-1)


def _flatten_cells(cells: Tensor) -> Tensor:
    """Turn ``(..., heads, h, w, C)`` into ``(N, heads, h * w, C)``."""
    return cells.flatten(-3, -2).flatten(0, -4)


def _append_cell(cells: Tensor, cell: Tensor) -> Tensor:
    """Append ``(heads, 1, C)`` to each window of ``(N, heads, cells, C)``."""
    return torch.cat([cells, cell.expand(cells.shape[0], -1, -1, -1)], dim=2)


def attend(attention: Attention, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Compute the official attention layer with PyTorch's fused kernels.

    Args:
        attention: the layer.
        query: ``(N, Q, C)``.
        key: ``(N, K, C)``.
        value: ``(N, K, C)``.

    Returns:
        ``(N, Q, C)``.
    """
    heads = attention.num_heads
    queries, keys, values = (
        split_heads(projection(tokens), heads)
        for projection, tokens in (
            (attention.q_proj, query),
            (attention.k_proj, key),
            (attention.v_proj, value),
        )
    )
    if queries.is_cpu and queries.dtype is torch.bfloat16 and not torch.is_grad_enabled():
        # A third of the time that PyTorch's kernel takes for the few tokens of a prompt
        scores = (queries / _root_of_head_width(attention)) @ keys.mT
        return attention.out_proj(join_heads(scores.softmax(dim=-1) @ values))
    return attention.out_proj(join_heads(F.scaled_dot_product_attention(queries, keys, values)))


def attend_to_image(attention: Attention, tokens: Tensor, placed: Tensor, cells: Tensor) -> Tensor:
    """Attend from T tokens of each prompt to the P cells of the prompt's image.

    A score is ``(W_q t) . (W_k c + b)`` with token t and cell c; it equals ``(W_k' W_q t) . c`` plus a number
    of the token alone. So the projection of P cells by ``W_k`` becomes one of T tokens by its transpose, and
    in the same way the cells are averaged before ``W_v`` is applied.

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
    """Attend from the P cells of each prompt's image to the prompt's T tokens.

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
    """Compute for each cell the mean of the tokens' projected values, weighted by the softmax of scores.

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
    """Return whether the tokens of all heads are fewer than the projection's channels.

    A projection that is more than a plain linear layer, e.g. one with a low-rank update, is not taken apart.
    """
    projections = (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj)
    plain = all(type(projection) is nn.Linear for projection in projections)
    return plain and tokens * attention.num_heads < attention.internal_dim
