"""Define the image encoder of SAMUS ("SAMUS", Lin et al., arXiv 2309.06824, 2023); its full text was not available."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nucsam_monai.networks.fine_tuning import bottleneck
from nucsam_monai.networks.sam import BlockAdapter, EncoderFeatures, ImageEncoder, SAMVariant
from nucsam_monai.networks.sam.encoder import relative_positions
from nucsam_monai.utils.errors import ConfigurationError


class FeatureAdapter(BlockAdapter):
    """Linear to a quarter of the width, GELU, Linear back, added parallel to the MLP; zero until it is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = bottleneck(width, 0.25)
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def beside_mlp(self, normed: Tensor) -> Tensor:
        """Return what is added to the MLP's output; ``normed`` is ``(B, h, w, C)``."""
        return self.layers(normed)


class PositionAdapter(nn.Module):
    """Fit SAM's position table to a smaller grid: maximum of each cell's positions, then a 3 x 3 convolution.

    At first the convolution changes nothing.

    Args:
        width: encoder width d.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, kernel_size=3, padding=1, bias=False)
        nn.init.dirac_(self.conv.weight)

    def forward(self, table: Tensor, grid: tuple[int, int]) -> Tensor:
        """Return ``(1, h, w, C)`` from the table ``(1, rows, columns, C)``."""
        positions = self.conv(F.adaptive_max_pool2d(table.permute(0, 3, 1, 2), grid))
        return positions.permute(0, 2, 3, 1)


class CrossBranchAttention(nn.Module):
    """Let the tokens of the transformer attend to the map of the convolutional branch (SAMUS, equation of CBA).

    ``softmax(F_v E_q (F_c E_k)^T / sqrt(d_m) + R) F_c E_v`` in four heads, whose linear combination is added to the
    tokens; zero until it is trained. The relative positions R are the sum of one table for rows and one for columns.

    Args:
        width: channels d of tokens and map.
        table_side: side in tokens of the grid that the tables are made for; they are interpolated for others.
    """

    heads = 4

    def __init__(self, width: int, table_side: int) -> None:
        super().__init__()
        inner = self.heads * max(1, width // 8)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.query = nn.Linear(width, inner)
        self.key = nn.Linear(width, inner)
        self.value = nn.Linear(width, inner)
        self.combine = nn.Linear(inner, width)
        self.rows = nn.Parameter(torch.zeros(2 * table_side - 1, self.heads))
        self.columns = nn.Parameter(torch.zeros(2 * table_side - 1, self.heads))
        nn.init.zeros_(self.combine.weight)
        nn.init.zeros_(self.combine.bias)

    def forward(self, tokens: Tensor, local: Tensor) -> Tensor:
        """Return what is added to ``(B, h, w, C)`` tokens; ``local`` is ``(B, h, w, C)`` of the other branch."""
        height, width = tokens.shape[1:3]
        # (h, 1, h, 1, heads) + (1, w, 1, w, heads): a query's row and column by a key's
        rows = relative_positions(self.rows, height)[:, None, :, None]
        columns = relative_positions(self.columns, width)[None, :, None]
        bias = (rows + columns).flatten(0, 1).flatten(1, 2).permute(2, 0, 1)  # (heads, h * w, h * w)
        query, key, value = (
            projected.flatten(1, 2).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for projected in (self.query(self.norm(tokens)), self.key(local), self.value(local))
        )
        found = F.scaled_dot_product_attention(query, key, value, attn_mask=bias.to(query.dtype))
        return self.combine(found.transpose(1, 2).flatten(2).unflatten(1, (height, width)))


def _convolution(in_channels: int, out_channels: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class LocalBranch(nn.Module):
    """What SAMUS adds to SAM's frozen image encoder, for small images such as 256 px.

    - Patches overlap by half: their stride is half of SAM's with the same convolution.
    - A position adapter, and feature adapters behind the patches and in each global block.
    - A convolutional branch: a 3 x 3 convolution, then one with pooling for each halving of the image down to the
      grid of the tokens, then one for each global block, from whose map that block's tokens get local features by
      cross-branch attention.
    - The branch's last map joins the image embedding.

    What follows is our choice: the branch's channels, which double up to the encoder's width; those of a head of the
    attention, an eighth of it; the place of the attention, behind the block; and how the outputs are joined, by a
    1 x 1 convolution that is zero at first. The network starts as SAM with overlapping
    patches. Variants whose patches are cut by several convolutions keep their grid. The last block is a global one in
    all variants.

    Args:
        variant: the sizes of SAM.

    Raises:
        ConfigurationError: a variant with a convolutional trunk of its own.

    Example:
        >>> from nucsam_monai.networks.sam import sam_variant
        >>> encoder = ImageEncoder(sam_variant("vit_tiny"))
        >>> LocalBranch(sam_variant("vit_tiny"))(encoder, torch.zeros(1, 3, 64, 64)).embedding.shape
        torch.Size([1, 128, 8, 8])
    """

    def __init__(self, variant: SAMVariant) -> None:
        super().__init__()
        if variant.fine_channels:
            raise ConfigurationError(
                f"adapter 'samus': found SAM variant '{variant.name}', whose image encoder has a convolutional branch "
                "of its own. Choose vit_b, vit_l, vit_h or vit_tiny."
            )
        self.overlap = 2 if variant.stem == "patch" else 1
        width, halvings = variant.width, (variant.patch // self.overlap).bit_length() - 1
        channels = [max(1, width >> (halvings - step)) for step in range(halvings + 1)]
        stem: list[nn.Module] = [_convolution(3, channels[0])]
        for before, after in pairwise(channels):
            stem += [_convolution(before, after), nn.MaxPool2d(2)]
        self.stem = nn.Sequential(*stem)
        self.stages = nn.ModuleList(_convolution(width, width) for _ in variant.global_blocks)
        side = max(1, variant.pos_grid // self.overlap)
        self.attention = nn.ModuleList(CrossBranchAttention(width, side) for _ in variant.global_blocks)
        self.position = PositionAdapter(width)
        self.patches = FeatureAdapter(width)
        self.adapters = nn.ModuleList(
            FeatureAdapter(width) if block in variant.global_blocks else BlockAdapter()
            for block in range(variant.depth)
        )
        self.join = nn.Conv2d(width, variant.embed_channels, kernel_size=1)
        for parameter in self.join.parameters():
            nn.init.zeros_(parameter)

    def forward(self, encoder: ImageEncoder, image: Tensor) -> EncoderFeatures:
        """Encode images with SAM's encoder and what is added to it.

        Args:
            encoder: image encoder of SAM.
            image: ``(B, 3, H, W)``, normalised with SAM's constants.

        Returns:
            The embedding has twice the cells on each side that SAM's has, where patches overlap.
        """
        tokens, local, start = self._tokens(encoder, image), self.stem(image), 0
        stages = zip(encoder.variant.global_blocks, self.stages, self.attention, strict=True)
        for block, stage, attention in stages:
            outputs = encoder.run_blocks(tokens, start, block + 1, adapters=self.adapters, keep=(block,))
            local, start = stage(local), block + 1
            tokens = outputs[block] + attention(outputs[block], local.permute(0, 2, 3, 1))
        return EncoderFeatures(encoder.apply_neck(tokens) + self.join(local))

    def _tokens(self, encoder: ImageEncoder, image: Tensor) -> Tensor:
        """Return the first block's input ``(B, h, w, C)``, positions added."""
        rows, columns = encoder.variant.grid((image.shape[-2], image.shape[-1]))
        if self.overlap == 1:
            tokens = encoder.patch_embed(image)
        else:
            patch, projection = encoder.variant.patch, dict(encoder.patch_embed.proj.named_parameters())
            padded = F.pad(image, [patch // 4] * 4)
            cells = F.conv2d(padded, projection["weight"], projection["bias"], stride=patch // 2)
            tokens = cells.permute(0, 2, 3, 1).contiguous()
        tokens = tokens + self.patches.layers(tokens)
        return tokens + self.position(encoder.pos_embed, (rows * self.overlap, columns * self.overlap))
