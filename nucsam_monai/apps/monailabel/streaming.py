"""Segment regions of any size with an inferer that sees a bounded window at a time."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np

from nucsam_monai.inferers.tiling import tile_origins
from nucsam_monai.utils.image_source import ImageSource, Region
from nucsam_monai.utils.nucleus import Nucleus, boxes_of, nuclei_of_prediction
from nucsam_monai.utils.prediction import NucleiPrediction

Predict = Callable[[np.ndarray], NucleiPrediction]

EDGE_PX = 2
"""A nucleus this near to an edge of its window, inside the region, is presumably cut."""

_SLACK_PX = 8
_SAME = 0.5


def nuclei_of_region(
    source: ImageSource, region: Region, predict: Predict, window_px: int, overlap_px: int
) -> Iterator[Nucleus]:
    """Yield the nuclei of a region; what fits into one window is predicted as a whole.

    Larger regions are covered by windows that overlap. In the middle of each overlap runs a seam, and a nucleus
    belongs to the window on whose side its centre of mass lies. So none is doubled, and none with a radius
    below half the overlap is cut; as the windows may disagree about a centre by some pixels, both may claim a
    nucleus near a seam, and the second to claim most of its pixels loses. At most one window of pixels is held
    in memory, and of the nuclei only those near the seams to windows that come later.

    Args:
        source: the image.
        region: inside of it.
        predict: segments ``(h, w, 3)`` uint8 RGB.
        window_px: side of a window.
        overlap_px: pixels that neighbours have in common, at least.

    Raises:
        ConfigurationError: the overlap is not smaller than the window.
    """
    rows = _windows(region.height, window_px, overlap_px)
    columns = _windows(region.width, window_px, overlap_px)
    earlier: list[Nucleus] = []
    for row in rows:
        earlier = [nucleus for nucleus in earlier if nucleus.box[3] > row.first]
        for column in columns:
            window = Region(column.first, row.first, column.end - column.first, row.end - row.first)
            pixels = source.read(window._replace(x=region.x + window.x, y=region.y + window.y))
            found = (nucleus.moved(window.x, window.y) for nucleus in nuclei_of_prediction(predict(pixels)))
            if len(rows) * len(columns) == 1:
                yield from found
                return
            owned = (nucleus for nucleus in found if _is_owned(nucleus, column, row, region))
            new = list(_unclaimed(owned, earlier))
            earlier += [one for one in new if one.box[2] > column.next_first or one.box[3] > row.next_first]
            yield from new


class _Span(NamedTuple):
    """Place a window along a side of the region: its pixels, those between its seams, and where the next one begins."""

    first: int
    end: int
    own_first: int
    own_end: int
    next_first: int


def _windows(side_px: int, window_px: int, overlap_px: int) -> list[_Span]:
    first = tile_origins(side_px, window_px, overlap_px).tolist()
    ends = [min(one + window_px, side_px) for one in first]
    seams = [0, *((end + following) // 2 for end, following in zip(ends, first[1:], strict=False)), side_px]
    return [
        _Span(*values) for values in zip(first, ends, seams, seams[1:], [*first[1:], side_px], strict=False)
    ]


def _is_owned(nucleus: Nucleus, column: _Span, row: _Span, region: Region) -> bool:
    """Return whether the centre lies between the seams, or right beyond them and the nucleus is whole."""
    ys, xs = np.nonzero(nucleus.mask)
    x, y = nucleus.x + xs.mean(), nucleus.y + ys.mean()
    beyond = max(column.own_first - x, x - (column.own_end - 1), row.own_first - y, y - (row.own_end - 1))
    if beyond <= 0:
        return True
    x0, y0, x1, y1 = nucleus.box
    cut = _is_cut(x0, x1, column, region.width) or _is_cut(y0, y1, row, region.height)
    return beyond <= _SLACK_PX and not cut


def _is_cut(first: int, end: int, window: _Span, side_px: int) -> bool:
    before = window.first > 0 and first < window.first + EDGE_PX
    return before or (window.end < side_px and end > window.end - EDGE_PX)


def _unclaimed(nuclei: Iterable[Nucleus], earlier: list[Nucleus]) -> Iterator[Nucleus]:
    """Yield the nuclei that no earlier one is, without the pixels that earlier ones claim."""
    boxes = boxes_of(earlier)
    for nucleus in nuclei:
        x0, y0, x1, y1 = nucleus.box
        meets = (boxes[:, 0] < x1) & (boxes[:, 2] > x0) & (boxes[:, 1] < y1) & (boxes[:, 3] > y0)
        left: Nucleus | None = nucleus
        for index in np.flatnonzero(meets).tolist():
            other = earlier[index]
            common = nucleus.common_pixels(other)
            if common > _SAME * min(nucleus.area_px, other.area_px):
                left = None
                break
            if common and left is not None:
                left = left.without(other)
        if left is not None and left.mask.any():
            yield left
