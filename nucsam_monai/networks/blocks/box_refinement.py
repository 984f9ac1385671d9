"""Refining each mask only around its nucleus: a nucleus covers a small part of a tile."""

from collections import defaultdict
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from nucsam_monai.networks.blocks.boundary_refinement import BoundaryRefinement, ImageGuides
from nucsam_monai.networks.blocks.refinement_chunks import prompts_per_chunk, refine_in_chunks

REACH_PX = 4
"""Moves of the deformable convolutions' taps, in pixels and both together, that a window has room for."""

HALO_PX = 22 + REACH_PX
"""How far from a pixel the refinement looks at coarse logits of 4 px, where taps move by ``REACH_PX``.

Pixels: two 3 x 3 convolutions of the mask 2, two deformable ones 1 each and 2 for rounded moves, attention 3, last
convolution of the features 1; then enlarging and convolving at half 2 + 2 and at a fourth of the size 4 + 4.
"""

_WINDOW_STEP_PX = 32  # few different window sizes, so that many windows can be refined together


Span = tuple[int, int]
"""Start and exclusive end along one axis in pixels."""


class Window(NamedTuple):
    """A part of an image, and its core: the part of it that counts."""

    rows: Span
    columns: Span
    core_rows: Span
    core_columns: Span

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    def place(self, refined: Tensor, logits: Tensor, *, add: bool) -> None:
        """Write the core of a refined window ``(1, h, w)`` into the logits ``(1, S, S)`` of its mask, or add it."""
        top, left = self.rows[0], self.columns[0]
        core = refined[
            :,
            self.core_rows[0] - top : self.core_rows[1] - top,
            self.core_columns[0] - left : self.core_columns[1] - left,
        ]
        place = logits[:, slice(*self.core_rows), slice(*self.core_columns)]
        place.copy_(place + core if add else core)


@torch.no_grad()
def refine_in_boxes(
    refinement: BoundaryRefinement,
    guides: ImageGuides,
    upscaled: Tensor,
    owners: Tensor,
    coarse: Tensor,
    margin_px: int,
    *,
    add: bool = False,
) -> Tensor:
    """Refine each mask in the box around its coarse mask, for inference.

    In the boxes the logits are those of refining the whole image but for rounding: all that they depend on is
    computed, and a mask whose deformable convolutions look farther than their window has room for is refined on
    the whole image, as are masks that are empty so far. Outside of them the coarse logits stand, which are
    negative there; so the final masks are the same where the refinement moves no boundary by more than the margin
    and draws nothing far from the nucleus.

    Args:
        refinement: the network in evaluation mode.
        guides: of the images.
        upscaled: ``(N, w, 4g, 4g)`` up-scaled features of the mask decoder.
        owners: ``(N,)`` int64, the image of each mask.
        coarse: ``(N, 1, 4g, 4g)`` coarse logits, or larger ones.
        margin_px: how far beyond the coarse mask a box goes, at least the pixels of one logit.
        add: the refinement draws on the coarse logits instead of in their place.

    Returns:
        ``(N, 1, S, S)`` logits.
    """
    size = (guides.evidence.shape[-2], guides.evidence.shape[-1])
    scale = size[1] // upscaled.shape[-1]
    logits = F.interpolate(coarse, size=size, mode="bilinear", align_corners=False)
    masks = F.adaptive_max_pool2d(coarse[:, 0], upscaled.shape[-2:]) > 0
    windows = _windows(masks, scale, max(margin_px, scale), size)
    alike: dict[tuple[int, int], list[int]] = defaultdict(list)
    for index, window in enumerate(windows):
        alike[window.size].append(index)
    on_whole_image = alike.pop(size, [])
    images = owners.tolist()
    for window_size, members in alike.items():
        together = prompts_per_chunk(guides.evidence, window_size)
        for start in range(0, len(members), together):
            chosen = members[start : start + together]
            cut = [_cut(guides, upscaled, windows[n], n, images[n], scale) for n in chosen]
            semantic, evidence, features = (torch.stack(parts) for parts in zip(*cut, strict=True))
            each_its_own = torch.arange(len(chosen), device=owners.device)
            refined = refinement(ImageGuides(semantic, evidence), features, each_its_own)
            for n, result, reach in zip(chosen, refined.logits, refined.reach_px.tolist(), strict=True):
                if reach > REACH_PX:
                    on_whole_image.append(n)
                else:
                    windows[n].place(result, logits[n], add=add)
    if on_whole_image:
        rest = torch.tensor(on_whole_image, device=owners.device)
        drawn = refine_in_chunks(refinement, guides, upscaled[rest], owners[rest]).logits
        logits[rest] = (logits[rest] + drawn if add else drawn).to(logits.dtype)
    return logits


def _windows(masks: Tensor, scale: int, margin_px: int, size: tuple[int, int]) -> list[Window]:
    """Place a window around each of the coarse masks ``(N, h, w)``; one of the whole image around none."""
    found = []
    rows, columns = masks.any(dim=2).cpu(), masks.any(dim=1).cpu()
    for occupied in zip(rows, columns, strict=True):
        spans = [
            _span(line.nonzero().flatten().tolist(), scale, margin_px, length)
            for line, length in zip(occupied, size, strict=True)
        ]
        (outer_rows, core_rows), (outer_columns, core_columns) = spans
        found.append(Window(outer_rows, outer_columns, core_rows, core_columns))
    return found


def _span(cells: list[int], scale: int, margin_px: int, length: int) -> tuple[Span, Span]:
    """Return the window's and the core's extent along one axis of ``length`` pixels."""
    if not cells:
        return (0, length), (0, length)
    core = (max(0, cells[0] * scale - margin_px), min(length, (cells[-1] + 1) * scale + margin_px))
    needed = core[1] - core[0] + 2 * HALO_PX + scale
    extent = min(length, -(-needed // _WINDOW_STEP_PX) * _WINDOW_STEP_PX)
    first = min(max(0, core[0] - HALO_PX), length - extent)
    first -= first % scale  # logits are not cut
    return (first, first + extent), core


def _cut(
    guides: ImageGuides, upscaled: Tensor, window: Window, prompt: int, image: int, scale: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return a window of the semantic features, the evidence and the mask's features."""
    pixels = (..., slice(*window.rows), slice(*window.columns))
    cells = (
        ...,
        slice(window.rows[0] // scale, window.rows[1] // scale),
        slice(window.columns[0] // scale, window.columns[1] // scale),
    )
    return guides.semantic[image][cells], guides.evidence[image][pixels], upscaled[prompt][cells]
