"""Prompted decoding on the cells around each prompt: a nucleus needs its surroundings, not the image."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from segment_anything.modeling import MaskDecoder
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.networks.sam.decoder import (
    DecodedMasks,
    as_cells,
    as_computed,
    checked_counts,
    chunks_of,
    decode_chunk,
    decode_prompts,
    join_chunks,
    prompts_per_chunk,
)
from nucsam_monai.networks.sam.fine_maps import fine_maps_of

_BACKGROUND = -10.0
"""Logit of the pixels outside of a window."""


def decode_in_windows(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    prompts_per_image: Tensor | Sequence[int],
    *,
    window: int,
    places: Tensor,
    pyramid: Sequence[Tensor] = (),
    multimask: bool = False,
    extra_tokens: Tensor | None = None,
) -> DecodedMasks:
    """Decode each prompt on a window of its image's cells, which keep their position code.

    The windows of all prompts have one shape, so prompts of different images are decoded together. Pixels outside
    of a window are background. A mask that reaches an edge of its window inside the image is decoded again on the
    whole image; so large nuclei stay whole, and no rule is needed for how large a nucleus may be.

    This is an approximation of :func:`~nucsam_monai.networks.sam.decoder.decode_prompts`, and equal to it where the
    window covers the image. Weights should be trained with the window that they are used with. Source: ours.

    Args:
        mask_decoder: the decoder of the embedding's variant.
        embedding: ``(B, C, h, w)`` image embeddings.
        image_pe: ``(1, C, h, w)`` position code of the embedding's cells.
        sparse: ``(N, T, C)`` prompt tokens.
        dense: ``(1, C, h, w)`` dense prompt embedding of all prompts, perhaps expanded to N.
        prompts_per_image: ``(B,)`` integers with sum N.
        window: side of the window in cells.
        places: ``(N, 2)`` where each prompt is, as shares (x, y) of the image's width and height.
        pyramid: see :func:`~nucsam_monai.networks.sam.decoder.decode_prompts`, also for the other arguments.
        multimask: return the three ambiguity masks instead of the single mask.
        extra_tokens: ``(E, C)`` further learned tokens.

    Returns:
        Masks of the whole images.

    Raises:
        ConfigurationError: the numbers of images, prompts and counts do not fit together, or fine maps are missing.
    """
    grid = (embedding.shape[2], embedding.shape[3])
    options: dict[str, Any] = {"multimask": multimask, "extra_tokens": extra_tokens}
    inputs = (mask_decoder, embedding, image_pe)
    if not len(sparse) or window >= max(grid):
        return decode_prompts(
            *inputs, sparse, dense, prompts_per_image, pyramid=pyramid, places=places, **options
        )
    counts = checked_counts(prompts_per_image, len(embedding), len(sparse))
    windows = _Windows.around(places, counts, grid, window)
    masks = _decode(*inputs, sparse, dense[:1], counts, windows, places=places, pyramid=pyramid, **options)
    cut = windows.reached(masks.logits)
    logits = windows.paste(masks.logits)
    if not len(cut):
        return masks._replace(logits=logits)
    whole = decode_prompts(
        *inputs,
        sparse[cut],
        dense[:1],
        torch.bincount(windows.owners[cut], minlength=len(embedding)),
        pyramid=pyramid,
        places=places[cut],
        **options,
    )
    return DecodedMasks(
        logits.index_copy(0, cut, whole.logits.to(logits.dtype)),
        masks.iou.index_copy(0, cut, whole.iou.to(masks.iou.dtype)),
        None,
        None
        if masks.extra is None or whole.extra is None
        else masks.extra.index_copy(0, cut, whole.extra.to(masks.extra.dtype)),
    )


class _Windows(NamedTuple):
    """Where the windows of N prompts lie.

    Attributes:
        side: in cells.
        grid: rows and columns of the embedding.
        corners: ``(N, 2)`` int64, first cell of each window as (x, y).
        owners: ``(N,)`` int64, index of each prompt's image.
    """

    side: int
    grid: tuple[int, int]
    corners: Tensor
    owners: Tensor

    @classmethod
    def around(cls, places: Tensor, counts: Sequence[int], grid: tuple[int, int], side: int) -> "_Windows":
        """Place the windows so that the prompts are in the middle, or as near to it as the image allows."""
        cells = torch.tensor(grid[::-1], device=places.device)
        side = min(side, *grid)
        first = (places.float() * cells - side / 2).round().long()
        corners = first.clamp(min=torch.zeros_like(cells), max=cells - side)
        owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(places.device)
        return cls(side, grid, corners, owners)

    def pixels(self, rows: slice, scale: int) -> Tensor:
        """Return ``(n, (scale * side)^2)`` flat indices into a map that is ``scale`` times as fine as the cells."""
        steps = torch.arange(scale * self.side, device=self.corners.device)
        x, y = (scale * self.corners[rows, axis, None] + steps for axis in (0, 1))
        return (y[:, :, None] * (scale * self.grid[1]) + x[:, None, :]).flatten(1)

    def cut_out(self, table: Tensor, rows: slice) -> Tensor:
        """Return the windows ``(n, P, C)`` of maps that were flattened to ``(B, h * w, C)``; B may be 1."""
        pixels = self.pixels(rows, scale=1)
        if len(table) > 1:
            pixels = pixels + table.shape[1] * self.owners[rows, None]
        # An embedding's gradient is summed row by row, that of indexing pixel by pixel
        return F.embedding(pixels, table.flatten(0, 1))

    def reached(self, logits: Tensor) -> Tensor:
        """Return which masks ``(N, M, s, s)`` reach an edge of their window that is not an edge of the image."""
        last = torch.tensor(self.grid[::-1], device=self.corners.device) - self.side
        inside = torch.cat([self.corners > 0, self.corners < last], dim=1)  # left, top, right, bottom
        edges = (logits[..., 0], logits[..., 0, :], logits[..., -1], logits[..., -1, :])
        touched = torch.stack([edge.amax(dim=(1, 2)) > 0 for edge in edges], dim=1)
        return (touched & inside).any(dim=1).nonzero()[:, 0]

    def paste(self, logits: Tensor) -> Tensor:
        """Return ``(N, M, s, s)`` logits of the windows as those of whole images."""
        scale = logits.shape[-1] // self.side
        count, masks = logits.shape[:2]
        size = (scale * self.grid[0], scale * self.grid[1])
        pixels = self.pixels(slice(None), scale)[:, None].expand(-1, masks, -1)
        background = logits.new_full((count, masks, size[0] * size[1]), _BACKGROUND)
        return background.scatter_(2, pixels, logits.flatten(2)).unflatten(2, size)


def _decode(
    mask_decoder: MaskDecoder,
    embedding: Tensor,
    image_pe: Tensor,
    sparse: Tensor,
    dense: Tensor,
    counts: Sequence[int],
    windows: _Windows,
    *,
    places: Tensor,
    pyramid: Sequence[Tensor],
    multimask: bool,
    extra_tokens: Tensor | None,
) -> DecodedMasks:
    """Return masks whose logits are those of the windows."""
    side = windows.side
    cells, code = as_cells(as_computed(embedding + dense)), as_cells(as_computed(image_pe))
    fine = fine_maps_of(embedding, pyramid, places, counts)
    if fine is not None:
        in_window = (places * torch.tensor(windows.grid[::-1], device=places.device) - windows.corners) / side
        fine = fine._replace(places=in_window, pixels=windows.pixels(slice(None), scale=8))
    tokens = sparse.shape[1] + (0 if extra_tokens is None else len(extra_tokens))
    size = prompts_per_chunk(mask_decoder, embedding[:, :, :side, :side], tokens=tokens)
    chunks = [
        decode_chunk(
            mask_decoder,
            windows.cut_out(cells, rows),
            windows.cut_out(code, rows),
            sparse[rows],
            chunk_counts,
            (side, side),
            None if fine is None else fine.of_chunk(rows, images),
            multimask=multimask,
            return_upscaled=False,
            extra_tokens=extra_tokens,
        )
        for rows, images, chunk_counts in chunks_of(counts, size)
    ]
    return join_chunks(chunks)
