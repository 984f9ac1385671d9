"""Define SAM's image encoder, at any working size, with hooks for adapters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from nucsam_monai.networks.sam.kernels import FrozenCache, PackedLinear, folded_attention
from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.networks.sam.trunk import TRUNK_CHANNELS, ConvTrunk, FineFeatures
from nucsam_monai.networks.sam.variants import SAMVariant
from nucsam_monai.utils.errors import ConfigurationError


class EncoderFeatures(NamedTuple):
    """Hold the output of the SAM image encoder.

    Attributes:
        embedding: ``(B, embed_channels, h, w)`` image embedding, ``h`` and ``w`` being image sides / patch.
        levels: on request, the outputs of the blocks ``variant.feature_blocks``, each through the shared
            neck, shaped like ``embedding``; the last one is ``embedding`` itself. Else empty.
        pyramid: for variants with a trunk, maps at an 8th, a 4th and half of the image that combine the embedding with
            the trunk's maps; else empty.
    """

    embedding: Tensor
    levels: tuple[Tensor, ...] = ()
    pyramid: tuple[Tensor, ...] = ()

    @property
    def fine(self) -> Tensor | None:
        """The map ``(B, fine_channels, H / 2, W / 2)`` of variants with a trunk; None of others."""
        return self.pyramid[-1] if self.pyramid else None


class BlockAdapter(nn.Module):
    """Define hooks for one encoder block; this base class changes nothing.

    A method overrides the hooks that it needs, keeps one adapter per block in its own network (so that
    SAM's state-dict keys never change) and passes the sequence to
    :meth:`~nucsam_monai.networks.sam.encoder.ImageEncoder.forward`. With hooks, a block computes::

        n = LN1(x);  qkv = adapter.qkv(n, Linear(n))
        y = adapter.windows(Attention(qkv))             # still split into windows
        x = x + adapter.after_attention(y)              # windows merged, padding removed
        n = LN2(x);  x = x + MLP(n) + adapter.beside_mlp(n)
        x = adapter.after_block(x)

    Hooks must not write into their arguments: activation checkpointing and ``torch.compile`` need them
    unchanged.

    Example:
        >>> class HalfAttention(BlockAdapter):
        ...     def after_attention(self, attended: Tensor) -> Tensor:
        ...         return 0.5 * attended
    """

    @property
    def acts_in_windows(self) -> bool:
        """Whether :meth:`windows` is overridden, so that padded cells must be attended for as well."""
        return type(self).windows is not BlockAdapter.windows

    def qkv(self, tokens: Tensor, qkv: Tensor) -> Tensor:
        """Change the queries, keys and values of the real (not padded) tokens.

        Args:
            tokens: ``(B, h, w, C)`` normalised tokens, the input of SAM's own projection.
            qkv: ``(B, h, w, 3C)`` its output: queries, keys, values side by side.
        """
        return qkv

    def windows(self, attended: Tensor) -> Tensor:
        """Change the attention's output while it is split into windows, padded cells included.

        Args:
            attended: ``(B * windows, side, side, C)``; ``(B, h, w, C)`` in a global block.
        """
        return attended

    def after_attention(self, attended: Tensor) -> Tensor:
        """Change the attention branch ``(B, h, w, C)`` before it is added to the residual stream."""
        return attended

    def beside_mlp(self, normed: Tensor) -> Tensor | None:
        """Return what is added parallel to the MLP, from the MLP's input ``(B, h, w, C)``; None for nothing."""
        return None

    def after_block(self, tokens: Tensor) -> Tensor:
        """Change the output ``(B, h, w, C)`` of the block."""
        return tokens


class PatchEmbed(nn.Module):
    """Turn ``(B, 3, H, W)`` pixels, or a trunk's last map, into ``(B, H / patch, W / patch, width)`` tokens.

    The official models use one convolution per patch. The compact ones use stride-2 convolutions of kernel 3
    ("Early Convolutions Help Transformers See Better", Xiao et al., 2021), which learn from small data sets at
    once, with instance normalisation. Layer normalisation over the channels would leave the faint contrast of
    fluorescence images as faint as it was, and batch normalisation would mix the statistics of domains that
    are trained in turn. Behind a trunk a token is one cell of its last map.
    """

    def __init__(self, variant: SAMVariant) -> None:
        super().__init__()
        self.proj: nn.Module
        if variant.stem == "efficientnet_lite0":
            self.proj = nn.Conv2d(TRUNK_CHANNELS[3], variant.width, kernel_size=1)
        elif variant.stem == "patch":
            self.proj = nn.Conv2d(3, variant.width, kernel_size=variant.patch, stride=variant.patch)
        else:
            self.proj = _conv_stem(variant.width, steps=variant.patch.bit_length() - 1)

    def forward(self, image: Tensor) -> Tensor:
        """Return the tokens, channels last."""
        # Every block adds to these tokens; strided over the channels each addition would take three times as long.
        return self.proj(image).permute(0, 2, 3, 1).contiguous()


def _conv_stem(width: int, steps: int) -> nn.Sequential:
    """Halve the sides ``steps`` times; the channels double at each step and end at ``width``.

    Behind every halving but the first, which would cost most, a second convolution sees the same scale.
    """
    layers: list[nn.Module] = []
    channels = 3
    for step in range(steps):
        wider = width // 2 ** (steps - 1 - step)
        layers += _normed_conv(channels, wider, stride=2)
        if step > 0:
            layers += _normed_conv(wider, wider, stride=1)
        channels = wider
    return nn.Sequential(*layers[:-1])  # the tokens are not rectified


def _normed_conv(in_channels: int, out_channels: int, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.InstanceNorm2d(out_channels, affine=True),
        nn.GELU(),
    ]


def resize_position_grid(table: Tensor, size: tuple[int, int], mode: str = "bicubic") -> Tensor:
    """Interpolate an absolute position table to another token grid.

    Args:
        table: ``(1, rows, columns, C)``.
        size: height and width of the wanted grid.
        mode: ``"bicubic"`` or ``"bilinear"``, without antialiasing and with unaligned corners.

    Returns:
        ``(1, h, w, C)``; the table itself where the size is its own.
    """
    if table.shape[1:3] == torch.Size(size):
        return table
    resized = F.interpolate(table.permute(0, 3, 1, 2), size=size, mode=mode, align_corners=False)
    return resized.permute(0, 2, 3, 1).contiguous()


def relative_positions(table: Tensor, length: int) -> Tensor:
    """Look up the relative position of every pair of coordinates along one axis.

    Args:
        table: ``(rows, C)``; it is interpolated linearly where it has not ``2 * length - 1`` rows.
        length: number of tokens along the axis.

    Returns:
        ``(length, length, C)``: entry ``[i, k]`` belongs to the query at ``i`` and the key at ``k``.
    """
    rows = 2 * length - 1
    if table.shape[0] != rows:
        table = F.interpolate(table.T.unsqueeze(0), size=rows, mode="linear", align_corners=False)[0].T
    position = torch.arange(length, device=table.device)
    return table[position[:, None] - position[None, :] + length - 1]


Span = tuple[int, int, int]


def split_windows(grid: Tensor, height: int, width: int) -> Tensor:
    """View a grid as windows, in row-major order, without a copy.

    Args:
        grid: ``(B, rows * height, columns * width, C)``.
        height: height of a window in tokens.
        width: width of a window in tokens.

    Returns:
        ``(B, rows, columns, height, width, C)``.
    """
    return grid.unflatten(2, (-1, width)).unflatten(1, (-1, height)).transpose(2, 3)


def merge_windows(windows: Tensor) -> Tensor:
    """Undo :func:`split_windows`.

    Args:
        windows: ``(B, rows, columns, height, width, C)``.

    Returns:
        ``(B, rows * height, columns * width, C)``.
    """
    return windows.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def pad_to_windows(grid: Tensor, side: int, fill: Tensor) -> Tensor:
    """Fill a grid up at the bottom and right until it falls into windows of ``side`` x ``side``.

    Args:
        grid: ``(B, h, w, C)``.
        side: side of a window in tokens.
        fill: ``(C,)`` value of the padded cells.
    """
    batch, height, width, channels = grid.shape
    below, right = -height % side, -width % side
    fill = fill.to(grid.dtype)
    if right:
        grid = torch.cat([grid, fill.expand(batch, height, right, channels)], dim=2)
    if below:
        grid = torch.cat([grid, fill.expand(batch, below, width + right, channels)], dim=1)
    return grid


def window_spans(length: int, side: int) -> list[Span]:
    """Group the windows along one axis by the number of real tokens in them.

    Returns:
        ``(start, stop, extent)`` of each group: the tokens ``start`` to ``stop`` lie in windows that hold
        ``extent`` of them; at most one group of whole windows, and the last window where it is cut.

    Example:
        >>> window_spans(64, 14)
        [(0, 56, 14), (56, 64, 8)]
    """
    whole = length - length % side
    spans = [(0, whole, side), (whole, length, length - whole)]
    return [span for span in spans if span[0] < span[1]]


class Attention(nn.Module):
    """Compute multi-head attention with decomposed relative positions.

    SAM pads the normalised tokens with zeros to whole windows; a padded token's queries, keys and values are
    therefore the bias of the qkv projection, and real tokens do attend to them. Here the projections see
    real tokens only, and so does the attention on a CPU: the padded cells of a window act as one key. The
    result is the same for less work. An accelerator is kept waiting by many small kernels rather than by padded
    cells, so there all windows are filled up with the bias and attended to at once.

    Args:
        width: channels of a token.
        heads: attention heads.
        table_side: side in tokens of the grid that the relative position tables are made for.
        window: side of a window in tokens; 0 attends over the whole grid.
    """

    def __init__(self, width: int, heads: int, table_side: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.qkv = PackedLinear(width, 3 * width)
        self.proj = PackedLinear(width, width)
        self.rel_pos_h = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self.rel_pos_w = nn.Parameter(torch.zeros(2 * table_side - 1, width // heads))
        self._positions_h = FrozenCache(relative_positions)
        self._positions_w = FrozenCache(relative_positions)

    def forward(self, tokens: Tensor, adapter: BlockAdapter) -> Tensor:
        """Attend from and to ``(B, h, w, C)`` tokens; the result has the same shape."""
        qkv = adapter.qkv(tokens, self.qkv(tokens))
        if not self.window:
            return adapter.windows(self.proj(self._attend(qkv)))
        if adapter.acts_in_windows:
            projected = self.proj(self._attend_whole_windows(qkv))
            changed = adapter.windows(projected.flatten(0, 2)).view_as(projected)
            return _crop(merge_windows(changed), like=tokens)
        if qkv.is_cpu:
            return self.proj(self._attend_real_tokens(qkv))
        return self.proj(_crop(merge_windows(self._attend_whole_windows(qkv)), like=tokens))

    def _attend_whole_windows(self, qkv: Tensor) -> Tensor:
        """Attend also from the padded cells; ``(B, rows, columns, window, window, C)``."""
        padded = pad_to_windows(qkv, self.window, fill=self.qkv.bias)
        return self._attend(split_windows(padded, self.window, self.window))

    def _attend_real_tokens(self, qkv: Tensor) -> Tensor:
        """Attend in the regions of equally cut windows one after another; ``(B, h, w, C)``."""
        _, height, width, _ = qkv.shape
        bands = []
        for top, bottom, rows in window_spans(height, self.window):
            regions = []
            for left, right, columns in window_spans(width, self.window):
                windows = split_windows(qkv[:, top:bottom, left:right], rows, columns)
                regions.append(merge_windows(self._attend(windows)))
            bands.append(torch.cat(regions, dim=2))
        return torch.cat(bands, dim=1)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attend among the ``(..., h, w, 3C)`` tokens of each window, which the border may have cut."""
        height, width = qkv.shape[-3:-1]
        rows, columns = (self.window, self.window) if self.window else (height, width)
        return folded_attention(
            qkv,
            self.heads,
            self._positions_h(self.rel_pos_h, rows),
            self._positions_w(self.rel_pos_w, columns),
            padding=self.qkv.bias if height < rows or width < columns else None,
        )


def _crop(grid: Tensor, like: Tensor) -> Tensor:
    return grid[:, : like.shape[1], : like.shape[2]]


_UNCHANGED = BlockAdapter()


class MLP(nn.Module):
    """Two linear layers with GELU between them, from and to ``width`` channels, ``hidden`` inside."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = PackedLinear(width, hidden, gelu=True)
        self.lin2 = PackedLinear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform ``(..., width)`` tokens."""
        return self.lin2(self.lin1(tokens))


class EncoderBlock(nn.Module):
    """One transformer block: attention and MLP, each normalised before and added to the residual stream.

    Args:
        variant: the sizes.
        is_global: attend over the whole grid instead of inside windows.
    """

    def __init__(self, variant: SAMVariant, *, is_global: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(variant.width, eps=1e-6)
        self.attn = Attention(
            variant.width,
            variant.heads,
            table_side=variant.pos_grid if is_global else variant.window,
            window=0 if is_global else variant.window,
        )
        self.norm2 = nn.LayerNorm(variant.width, eps=1e-6)
        self.mlp = MLP(variant.width, int(variant.width * variant.mlp_ratio))

    def forward(self, tokens: Tensor, adapter: BlockAdapter = _UNCHANGED) -> Tensor:
        """Transform ``(B, h, w, C)`` tokens."""
        tokens = tokens + adapter.after_attention(self.attn(self.norm1(tokens), adapter))
        normed = self.norm2(tokens)
        update = self.mlp(normed)
        beside = adapter.beside_mlp(normed)
        if beside is not None:
            update = update + beside
        return adapter.after_block(tokens + update)


class ImageEncoder(nn.Module):
    """Encode images with SAM's vision transformer and neck.

    "Segment Anything" (Kirillov et al., 2023), section 3 and appendix A. The state-dict keys are the official
    ones. The position tables keep their pretrained size and are interpolated in the forward pass, once where
    they are frozen: the absolute table where the token grid differs from it, the relative tables of global
    blocks linearly; the relative tables of windowed blocks are used as they are at every size.

    Args:
        variant: the sizes.
        pos_embed_mode: interpolation of the absolute position table.
        activation_checkpointing: recompute each block in the backward pass instead of keeping its
            activations; slower, but fits large encoders into memory.

    Example:
        >>> from nucsam_monai.networks.sam.variants import sam_variant
        >>> encoder = ImageEncoder(sam_variant("vit_tiny"))
        >>> encoder(torch.zeros(1, 3, 64, 64)).embedding.shape
        torch.Size([1, 128, 8, 8])
    """

    def __init__(
        self,
        variant: SAMVariant,
        *,
        pos_embed_mode: Literal["bicubic", "bilinear"] = "bicubic",
        activation_checkpointing: bool = False,
    ) -> None:
        super().__init__()
        if pos_embed_mode not in ("bicubic", "bilinear"):
            raise ConfigurationError(f"pos_embed_mode '{pos_embed_mode}' is none of: bicubic, bilinear.")
        self.variant = variant
        self.pos_embed_mode = pos_embed_mode
        self.activation_checkpointing = activation_checkpointing
        self.patch_embed = PatchEmbed(variant)
        self.pos_embed = nn.Parameter(torch.zeros(1, variant.pos_grid, variant.pos_grid, variant.width))
        self._positions = FrozenCache(resize_position_grid)
        self.blocks = nn.ModuleList(
            EncoderBlock(variant, is_global=index in variant.global_blocks) for index in range(variant.depth)
        )
        self.neck = nn.Sequential(
            nn.Conv2d(variant.width, variant.embed_channels, kernel_size=1, bias=False),
            LayerNorm2d(variant.embed_channels),
            nn.Conv2d(variant.embed_channels, variant.embed_channels, kernel_size=3, padding=1, bias=False),
            LayerNorm2d(variant.embed_channels),
        )
        self._initialise()
        # Both after the initialisation, which is the transformer's.
        self.trunk = ConvTrunk() if variant.fine_channels else None
        self.fine = (
            FineFeatures(variant.embed_channels, TRUNK_CHANNELS[2::-1], variant.pyramid_channels)
            if variant.fine_channels
            else None
        )

    def forward(
        self,
        image: Tensor,
        *,
        adapters: Sequence[BlockAdapter] | nn.ModuleList | None = None,
        return_levels: bool = False,
    ) -> EncoderFeatures:
        """Encode normalised images.

        Args:
            image: ``(B, 3, H, W)``, sides multiples of ``variant.patch``, normalised with SAM's mean and
                standard deviation.
            adapters: one per block, see :class:`BlockAdapter`; None runs plain SAM.
            return_levels: also return the outputs of ``variant.feature_blocks``.

        Raises:
            ConfigurationError: the sides do not fit the patch, or the number of adapters the depth.
        """
        maps = () if self.trunk is None else self.trunk(image)
        outputs = self.run_blocks(
            self.embed(image, maps), adapters=adapters, keep=self.output_blocks(return_levels)
        )
        necked = {block: self.apply_neck(tokens) for block, tokens in outputs.items()}
        features = self.features(necked, return_levels)
        if self.fine is None:
            return features
        return features._replace(pyramid=self.fine(features.embedding, maps[-2::-1]))

    def embed(self, image: Tensor, maps: Sequence[Tensor] = ()) -> Tensor:
        """Turn images into the first block's input, positions added.

        Args:
            image: ``(B, 3, H, W)``.
            maps: maps of the trunk, for variants that have one.

        Returns:
            ``(B, h, w, C)``.
        """
        grid = self.variant.grid((image.shape[-2], image.shape[-1]))
        tokens = self.patch_embed(maps[-1] if maps else image)
        return tokens + self._positions(self.pos_embed, grid, self.pos_embed_mode)

    def output_blocks(self, return_levels: bool) -> tuple[int, ...]:
        """Return the 0-based blocks whose outputs :meth:`features` needs, in ascending order."""
        return self.variant.feature_blocks if return_levels else (self.variant.depth - 1,)

    def run_blocks(
        self,
        tokens: Tensor,
        start: int = 0,
        stop: int | None = None,
        *,
        adapters: Sequence[BlockAdapter] | nn.ModuleList | None = None,
        keep: Collection[int],
    ) -> dict[int, Tensor]:
        """Run blocks ``start`` to ``stop - 1``, the last one where ``stop`` is None.

        Args:
            tokens: ``(B, h, w, C)``, the output of block ``start - 1``, or of :meth:`embed` for ``start`` 0.
            start: the first block to run.
            stop: the block before which to stop.
            adapters: one per block of the whole encoder, as for :meth:`forward`.
            keep: blocks whose outputs are returned; those outside the range are ignored.

        Returns:
            ``(B, h, w, C)`` outputs by block, before the neck.

        Raises:
            ConfigurationError: the number of adapters does not fit the depth.
        """
        pairs = list(zip(self.blocks, self.one_per_block(adapters), strict=True))
        outputs: dict[int, Tensor] = {}
        for index in range(*slice(start, stop).indices(len(pairs))):
            block, adapter = pairs[index]
            if self.activation_checkpointing and torch.is_grad_enabled():
                tokens = checkpoint(block, tokens, adapter, use_reentrant=False)
            else:
                tokens = block(tokens, adapter)
            if index in keep:
                outputs[index] = tokens
        return outputs

    def apply_neck(self, tokens: Tensor) -> Tensor:
        """Turn the tokens ``(B, h, w, C)`` of a block into ``(B, embed_channels, h, w)``."""
        return self.neck(tokens.permute(0, 3, 1, 2))

    def features(self, necked: Mapping[int, Tensor], return_levels: bool) -> EncoderFeatures:
        """Collect what left the neck, by block, into what :meth:`forward` returns."""
        levels = tuple(necked[block] for block in self.output_blocks(return_levels))
        return EncoderFeatures(levels[-1], levels if return_levels else ())

    def one_per_block(
        self, adapters: Sequence[BlockAdapter] | nn.ModuleList | None
    ) -> Sequence[BlockAdapter] | nn.ModuleList:
        """Return ``adapters``, or identity adapters if there are none.

        Raises:
            ConfigurationError: their number is not the depth.
        """
        if adapters is None:
            return [_UNCHANGED] * self.variant.depth
        if len(adapters) != self.variant.depth:
            raise ConfigurationError(
                f"adapters: found {len(adapters)}, expected one per block of SAM variant "
                f"'{self.variant.name}' ({self.variant.depth})."
            )
        return adapters

    def _initialise(self) -> None:
        """Draw weights from which the compact variants can be trained without a checkpoint."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)
            elif isinstance(module, Attention):
                nn.init.trunc_normal_(module.rel_pos_h, std=0.02)
                nn.init.trunc_normal_(module.rel_pos_w, std=0.02)
        nn.init.trunc_normal_(self.pos_embed, std=0.02)
