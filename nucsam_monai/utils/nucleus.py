"""Handle nuclei one by one, each cropped to its box, as prompted networks return them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from nucsam_monai.utils.instances import connected_components
from nucsam_monai.utils.prediction import NucleiPrediction


@dataclass(frozen=True)
class Nucleus:
    """Hold one nucleus as a mask cropped to its box.

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
        """Return the nucleus shifted by ``x`` columns and ``y`` rows."""
        return replace(self, x=self.x + x, y=self.y + y)

    def halved(self) -> "Nucleus":
        """Return the nucleus in an image of half the size: the pixels that it covers by at least half."""
        x0, y0, x1, y1 = self.box
        mask = np.pad(self.mask, ((y0 % 2, y1 % 2), (x0 % 2, x1 % 2)))
        covered = mask.reshape(mask.shape[0] // 2, 2, mask.shape[1] // 2, 2).sum(axis=(1, 3))
        return replace(self, x=x0 // 2, y=y0 // 2, mask=covered >= 2).trimmed()

    def common_pixels(self, other: "Nucleus") -> int:
        """Return the number of pixels that both claim."""
        return int(np.count_nonzero(self.part_of(other) & other.part_of(self)))

    def part_of(self, other: "Nucleus") -> NDArray[np.bool_]:
        """Return a view of the mask in the intersection of both boxes; it may be empty."""
        x0, y0 = max(self.x, other.x), max(self.y, other.y)
        x1, y1 = (min(own, its) for own, its in zip(self.box[2:], other.box[2:], strict=True))
        return self.mask[y0 - self.y : max(y1, y0) - self.y, x0 - self.x : max(x1, x0) - self.x]

    def trimmed(self) -> "Nucleus":
        """Return the same pixels in the smallest box; ``(0, 0)`` if there are none."""
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
        """Return the part in columns 0..width - 1 and rows 0..height - 1; ``(0, 0)`` if there is none."""
        x0, y0, x1, y1 = self.box
        if x0 >= 0 and y0 >= 0 and x1 <= width and y1 <= height:
            return self
        left, top = max(-x0, 0), max(-y0, 0)
        mask = self.mask[top : max(height - y0, 0), left : max(width - x0, 0)]
        return replace(self, x=x0 + left, y=y0 + top, mask=mask).trimmed()


def nuclei_of_prediction(prediction: NucleiPrediction) -> Iterator[Nucleus]:
    """Yield the nuclei of a prediction in the order of its table."""
    columns = ["id", "class_id", "score", "box_x_min_px", "box_y_min_px", "box_x_max_px", "box_y_max_px"]
    for nucleus_id, class_id, score, x0, y0, x1, y1 in prediction.table[columns].tolist():
        mask = prediction.instances[y0:y1, x0:x1] == nucleus_id
        yield Nucleus(x0, y0, mask, class_id, score)


def paint_nuclei(nuclei: Iterable[Nucleus | None], shape: tuple[int, int]) -> NDArray[np.int32]:
    """Paint nuclei into a ``(H, W)`` label map in which the k-th nucleus has the id k.

    Args:
        nuclei: nuclei; the id of a None is not used.
        shape: height and width of the map.
    """
    label_map = np.zeros(shape, dtype=np.int32)
    for nucleus_id, nucleus in enumerate(nuclei, start=1):
        if nucleus is not None:
            x0, y0, x1, y1 = nucleus.box
            label_map[y0:y1, x0:x1][nucleus.mask] = nucleus_id
    return label_map


def boxes_of(nuclei: Sequence[Nucleus]) -> NDArray[np.int64]:
    """Return the boxes ``(n, 4)``."""
    return np.array([nucleus.box for nucleus in nuclei], dtype=np.int64).reshape(-1, 4)


def component_at(nucleus: Nucleus, x: int, y: int) -> Nucleus:
    """Return the 8-connected component of a mask at a pixel, or the nearest one.

    Args:
        nucleus: nucleus with at least one pixel.
        x: column in the coordinates of the nucleus.
        y: row.
    """
    parts = connected_components(nucleus.mask)
    if parts.max() <= 1:
        return nucleus
    rows, columns = np.nonzero(parts)
    nearest = np.argmin((columns + nucleus.x - x) ** 2 + (rows + nucleus.y - y) ** 2)
    return replace(nucleus, mask=parts == parts[rows[nearest], columns[nearest]]).trimmed()


def split_by_clicks(nuclei: Sequence[Nucleus], clicks: NDArray[np.int64]) -> list[Nucleus]:
    """Assign every pixel that several nuclei claim to one of them.

    Pixels that only one nucleus claims, and the pixels at the clicks, keep their nucleus. The others are assigned by a
    watershed from these, so that the border runs along the neck between the clicks. If two clicks have equal masks,
    each gets the half around its click.

    Args:
        nuclei: one nucleus for each click.
        clicks: ``(n, 2)`` column and row.

    Returns:
        The nuclei in the same order without shared pixels. A nucleus without pixels, such as that of a second click
        on the same pixel, has an empty mask.
    """
    nuclei = list(nuclei)
    for group in _overlapping_groups(nuclei):
        for index, mask in zip(group, _share(nuclei, group, clicks), strict=True):
            nuclei[index] = mask
    return nuclei


def _share(nuclei: Sequence[Nucleus], group: Sequence[int], clicks: NDArray[np.int64]) -> list[Nucleus]:
    boxes = boxes_of([nuclei[index] for index in group])
    x0, y0 = boxes[:, :2].min(axis=0).tolist()
    x1, y1 = boxes[:, 2:].max(axis=0).tolist()
    claims = np.zeros((y1 - y0, x1 - x0), dtype=np.int32)
    markers = np.zeros_like(claims)
    for number, index in enumerate(group, start=1):
        left, top, right, bottom = nuclei[index].box
        place = (slice(top - y0, bottom - y0), slice(left - x0, right - x0))
        claims[place] += nuclei[index].mask
        markers[place][nuclei[index].mask] = number
    markers[claims != 1] = 0
    taken = np.zeros_like(claims, dtype=np.bool_)
    for number, index in enumerate(group, start=1):
        column, row = (clicks[index] - (x0, y0)).tolist()
        inside = 0 <= row < claims.shape[0] and 0 <= column < claims.shape[1]
        if inside and claims[row, column] and not taken[row, column]:
            markers[row, column], taken[row, column] = number, True
    depth = ndimage.distance_transform_edt(np.pad(claims > 0, 1))[1:-1, 1:-1]
    owners = watershed(-depth, markers, mask=claims > 0)
    return [
        replace(nuclei[index], x=x0, y=y0, mask=owners == number).trimmed()
        for number, index in enumerate(group, start=1)
    ]


def _overlapping_groups(nuclei: Sequence[Nucleus]) -> list[list[int]]:
    """Return the groups of nuclei that share pixels, directly or through others."""
    group_of = list(range(len(nuclei)))
    for one in range(len(nuclei)):
        for other in range(one):
            if nuclei[one].common_pixels(nuclei[other]) and group_of[one] != group_of[other]:
                old, new = group_of[one], group_of[other]
                group_of = [new if group == old else group for group in group_of]
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(group_of):
        groups.setdefault(group, []).append(index)
    return [members for members in groups.values() if len(members) > 1]
