"""SAM's image encoder, at any working size, with hooks for adapters."""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nucsam_monai.networks.sam.adapter import BlockAdapter
from nucsam_monai.networks.sam.attention import Attention
from nucsam_monai.networks.sam.features import EncoderFeatures
from nucsam_monai.networks.sam.frozen_cache import FrozenCache
from nucsam_monai.networks.sam.layers import LayerNorm2d
from nucsam_monai.networks.sam.packed_linear import PackedLinear
from nucsam_monai.networks.sam.relative_position import resize_position_grid
from nucsam_monai.networks.sam.stem import PatchEmbed
from nucsam_monai.networks.sam.trunk import TRUNK_CHANNELS, ConvTrunk, FineFeatures
from nucsam_monai.networks.sam.variants import SAMVariant
from nucsam_monai.utils.errors import ConfigurationError

_UNCHANGED = BlockAdapter()


class MLP(nn.Module):
    """Two linear layers with GELU between them, from and to ``width`` channels, ``hidden`` inside."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.lin1 = PackedLinear(width, hidden)
        self.lin2 = PackedLinear(hidden, width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Transform ``(..., width)`` tokens."""
        return self.lin2(functional.gelu(self.lin1(tokens)))


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
    """The vision transformer of SAM with its neck.

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
            maps: of the trunk, for variants that have one.

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
        """Return ``adapters``, or ones that change nothing where there are none.

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
