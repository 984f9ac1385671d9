"""What a variant with a fine map adds to SAM's mask decoder: sharp outlines, and masks that stay near their prompt."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn
from torch.nn import functional as F

_STEEPEST = 6.0
"""Largest logarithm of a hill's slope, for which logits stay finite in any precision."""

_START_TOP = 2.0
_START_SLOPE = 10.0


class FineMaskDecoder(MaskDecoder):
    """The mask decoder of variants with a fine map: each mask token has a second kernel, for that map.

    A kernel alone cannot tell a nucleus from its neighbour, because a convolutional map says the same of both, and the
    cells of the embedding are as large as a nucleus. So the tokens are told what all maps show at the place of the
    prompt, and each mask token also gives a hill near it, as CondInst gives its kernels relative coordinates (Tian et
    al., 2020): ``top - e^a x^2 - e^b y^2 + 2 tanh(c) e^((a + b) / 2) x y``, x and y being the distance in cells from
    the place moved by a vector. ``top``, the vector, a, b and c start as the same for every prompt.

    Args:
        pyramid_channels: channels of the maps that are finer than the embedding, the last the fine one.
        options: options of the official decoder.
    """

    def __init__(self, pyramid_channels: Sequence[int], **options: object) -> None:
        super().__init__(**options)
        channels = self.transformer_dim
        self.pyramid_channels = tuple(pyramid_channels)
        self.seen_at_place = nn.Linear(channels + sum(pyramid_channels), channels)
        nn.init.zeros_(self.seen_at_place.weight)
        nn.init.zeros_(self.seen_at_place.bias)
        self.fine_hypernetworks_mlps = nn.ModuleList(
            MLP(channels, channels, pyramid_channels[-1], 3) for _ in range(self.num_mask_tokens)
        )
        hills = [MLP(channels, channels, 6, 3) for _ in range(self.num_mask_tokens)]
        slope = math.log(_START_SLOPE)
        for mlp in hills:
            last = mlp.layers[-1]
            nn.init.zeros_(last.weight)
            last.bias.data = torch.tensor([_START_TOP, 0, 0, slope, slope, 0])
        self.place_hypernetworks_mlps = nn.ModuleList(hills)


class FineMaps(NamedTuple):
    """Hold what the prompts of a decoder with a fine map draw outlines on.

    Attributes:
        maps: ``(F, 8h, 8w)`` of each image.
        places: ``(N, 2)`` shares (x, y) of the width and height that are drawn on; None without places.
        seen: ``(N, sum of C)`` values of all maps at the places.
        pixels: ``(N, S)`` the S pixels of each map that are drawn on, as indices into the flat map; None for all.
    """

    maps: Sequence[Tensor]
    places: Tensor | None
    seen: Tensor | None
    pixels: Tensor | None = None

    def of_chunk(self, prompts: slice, images: slice) -> "FineMaps":
        """Return the part that some prompts of some images need."""
        if self.places is None or self.seen is None:
            return FineMaps(self.maps[images], None, None)
        pixels = None if self.pixels is None else self.pixels[prompts]
        return FineMaps(self.maps[images], self.places[prompts], self.seen[prompts], pixels)


def fine_maps_of(
    embedding: Tensor, pyramid: Sequence[Tensor], places: Tensor | None, counts: Sequence[int]
) -> FineMaps | None:
    """Prepare the maps of B images for their prompts.

    Args:
        embedding: ``(B, C, h, w)``.
        pyramid: finer maps of the images, the last the fine one; empty for decoders without.
        places: ``(N, 2)`` shares (x, y) of width and height, or None.
        counts: number of prompts of each image.

    Returns:
        None without a pyramid.
    """
    if not pyramid:
        return None
    # Images are taken apart once: their gradients are joined once then, and not for each chunk.
    maps = pyramid[-1].unbind()
    return FineMaps(maps, places, None if places is None else _seen_at(places, (embedding, *pyramid), counts))


def _seen_at(places: Tensor, maps: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Return what maps ``(B, C, ...)`` say at the places ``(N, 2)`` of prompts, ``(N, sum of C)``."""
    grids = (2 * places.float() - 1).split(list(counts))
    found = [
        torch.cat([_at(own, feature[image : image + 1]) for feature in maps], dim=1)
        for image, own in enumerate(grids)
        if len(own)
    ]
    return torch.cat(found)


def _at(places: Tensor, feature: Tensor) -> Tensor:
    """Interpolate one map ``(1, C, h, w)`` at places ``(n, 2)`` in -1..1: ``(n, C)`` float32."""
    sampled = F.grid_sample(feature.float(), places[None, None], padding_mode="border", align_corners=False)
    return sampled[0, :, 0].mT


def add_outlines(logits: Tensor, kernels: Tensor, fine: FineMaps, counts: Sequence[int]) -> Tensor:
    """Double logits ``(N, M, 4h, 4w)`` in size and add the products of ``(N, M, F)`` kernels and fine maps.

    Args:
        logits: logits of the upscaled features.
        kernels: one per mask.
        fine: the maps, and the pixels of them that the logits belong to.
        counts: number of prompts of each image.
    """
    # (n * M, F) @ (F, 8h * 8w), all masks of an image at once: more pixels than a window has, but one product
    outlines = torch.cat(
        [
            (own.flatten(0, 1) @ _flattened(maps)).unflatten(0, own.shape[:2])
            for own, maps in zip(kernels.split(list(counts)), fine.maps, strict=True)
            if len(own)
        ]
    )
    if fine.pixels is not None:
        outlines = outlines.gather(2, fine.pixels[:, None].expand(-1, outlines.shape[1], -1))
    size = (2 * logits.shape[-2], 2 * logits.shape[-1])
    logits = F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
    return logits + outlines.unflatten(-1, size)


def _flattened(maps: Tensor) -> Tensor:
    """Flatten maps ``(F, h, w)`` to ``(F, h * w)``, those whose channels come last in memory without a copy."""
    return maps.flatten(1) if maps.is_contiguous() else maps.permute(1, 2, 0).flatten(0, 1).mT


def add_hills(logits: Tensor, hills: Tensor, places: Tensor) -> Tensor:
    """Add an elliptic hill near each prompt's place.

    Args:
        logits: ``(N, M, 8h, 8w)`` float32.
        hills: ``(N, M, 6)``, see :class:`~nucsam_monai.networks.sam.fine_maps.FineMaskDecoder`.
        places: ``(N, 2)`` shares (x, y) of width and height.
    """
    height, width = logits.shape[-2:]
    with torch.autocast(logits.device.type, enabled=False):
        top, right, down, slope_x, slope_y, tilt = hills.float().unsqueeze(-1).unbind(2)  # (N, M, 1)
        slope_x, slope_y = (slope.clamp(max=_STEEPEST).exp() for slope in (slope_x, slope_y))
        tilt = 2 * torch.tanh(tilt) * (slope_x * slope_y).sqrt()
        x, y = (
            (torch.arange(side, device=logits.device) + 0.5 - side * place[:, None].float())[:, None] / 8
            - shift
            for side, place, shift in ((width, places[:, 0], right), (height, places[:, 1], down))
        )  # (N, M, 8w) and (N, M, 8h), in cells from the hill's top
        along_x, along_y = -slope_x * x * x, top - slope_y * y * y
        # (N * M, 8h, 3) @ (N * M, 3, 8w): along_y + along_x + tilt * y * x
        rows = torch.stack([along_y, torch.ones_like(y), tilt * y], dim=-1).flatten(0, 1)
        columns = torch.stack([torch.ones_like(x), along_x, x], dim=-2).flatten(0, 1)
        return torch.baddbmm(logits.flatten(0, 1), rows, columns).unflatten(0, hills.shape[:2])
