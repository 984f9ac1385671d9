"""Nuclei one by one, each cut out by its box: the form in which regions of any size are put together."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.io.contours import mask_polygons
from nucsam_monai.utils.prediction import NucleiPrediction


@dataclass(frozen=True)
class Nucleus:
    """One nucleus.

    Attributes:
        x: column of the mask's first pixel in the region.
        y: row of it.
        mask: ``(h, w)`` bool.
        class_id: index into the names of the classes.
        score: confidence in [0, 1].
    """

    x: int
    y: int
    mask: NDArray[np.bool_]
    class_id: int = 0
    score: float = 1.0

    @property
    def box(self) -> tuple[int, int, int, int]:
        """First column and row, and those after the last."""
        return self.x, self.y, self.x + self.mask.shape[1], self.y + self.mask.shape[0]

    @property
    def area_px(self) -> int:
        """Number of pixels."""
        return int(np.count_nonzero(self.mask))

    def moved(self, x: int, y: int) -> "Nucleus":
        """Return the nucleus ``x`` columns and ``y`` rows further."""
        return replace(self, x=self.x + x, y=self.y + y)

    def common_pixels(self, other: "Nucleus") -> int:
        """Return the number of pixels that both claim."""
        return int(np.count_nonzero(self.part_of(other) & other.part_of(self)))

    def part_of(self, other: "Nucleus") -> NDArray[np.bool_]:
        """Return the piece of the mask in the box that both have in common, a view; it may be empty."""
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1, y1 = (min(own, its) for own, its in zip(self.box[2:], other.box[2:], strict=True))
        return self.mask[y0 - self.y : max(y1, y0) - self.y, x0 - self.x : max(x1, x0) - self.x]

    def without(self, other: "Nucleus") -> "Nucleus":
        """Return the nucleus without the pixels that ``other`` claims."""
        left = replace(self, mask=self.mask.copy())
        left.part_of(other)[other.part_of(self)] = False
        return left

    def trimmed(self) -> "Nucleus":
        """Return the same pixels in the smallest box; ``(0, 0)`` where there are none."""
        rows, columns = np.flatnonzero(self.mask.any(axis=1)), np.flatnonzero(self.mask.any(axis=0))
        if not len(rows):
            return replace(self, mask=np.zeros((0, 0), dtype=np.bool_))
        top, left = int(rows[0]), int(columns[0])
        mask = self.mask[top : rows[-1] + 1, left : columns[-1] + 1].copy()
        return replace(self, x=self.x + left, y=self.y + top, mask=mask)

    def common_part(self, other: "Nucleus") -> "Nucleus":
        """Return the pixels that both claim."""
        x, y = max(self.x, other.x), max(self.y, other.y)
        return replace(self, x=x, y=y, mask=self.part_of(other) & other.part_of(self)).trimmed()

    def cut_off(self, width: int, height: int) -> "Nucleus":
        """Return the part in columns 0..width - 1 and rows 0..height - 1; ``(0, 0)`` where there is none."""
        x0, y0, x1, y1 = self.box
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            return self
        left, top = max(-x0, 0), max(-y0, 0)
        mask = self.mask[top : max(height - y0, 0), left : max(width - x0, 0)]
        return replace(self, x=x0 + left, y=y0 + top, mask=mask).trimmed()

    def contour(self, scale: float = 1.0, x: int = 0, y: int = 0) -> list[list[int]]:
        """Return the outline of the largest part as ``[x, y]`` corners of pixels, not closed.

        Args:
            scale: factor from pixels of the region to those of the result.
            x: added to all columns.
            y: added to all rows.
        """
        parts = mask_polygons(self.mask.view(np.uint8), x_offset_px=self.x, y_offset_px=self.y)
        if not parts:
            return []
        return [[round(column * scale) + x, round(row * scale) + y] for column, row in parts[0][0][:-1]]


def nuclei_of_prediction(prediction: NucleiPrediction) -> Iterator[Nucleus]:
    """Yield the nuclei of a prediction in the order of its table."""
    columns = ["id", "class_id", "score", "box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px"]
    for nucleus_id, class_id, score, x0, y0, x1, y1 in prediction.table[columns].tolist():
        mask = prediction.instances[y0:y1, x0:x1] == nucleus_id
        yield Nucleus(x0, y0, mask, class_id, score)


def paint_nuclei(nuclei: Iterable[Nucleus], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Return the ``(H, W)`` label map in which the k-th nucleus has the id k, 0 being background."""
    label_map = np.zeros(shape, dtype=np.int32)
    for nucleus_id, nucleus in enumerate(nuclei, start=1):
        x0, y0, x1, y1 = nucleus.box
        label_map[y0:y1, x0:x1][nucleus.mask] = nucleus_id
    return label_map


def boxes_of(nuclei: Sequence[Nucleus]) -> NDArray[np.int64]:
    """Return the boxes ``(n, 4)``."""
    return np.array([nucleus.box for nucleus in nuclei], dtype=np.int64).reshape(-1, 4)
