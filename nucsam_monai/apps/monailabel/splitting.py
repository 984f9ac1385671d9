"""Which pixel belongs to which click."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.segmentation import watershed

from nucsam_monai.apps.monailabel.nuclei import Nucleus, boxes_of
from nucsam_monai.utils.components import connected_components


def component_at(nucleus: Nucleus, x: int, y: int) -> Nucleus:
    """Return the 8-connected part of a mask that is at a pixel, or nearest to it where none is.

    Args:
        nucleus: with at least one pixel.
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
    """Give every pixel that several nuclei claim to one of them.

    Pixels that one nucleus alone claims, and the pixels at the clicks, stay with their nucleus; from these the
    claimed area is flooded from its middle to its rim, so that the border runs along the neck between the
    clicks. Of equal masks of two clicks each gets the half around its click.

    Args:
        nuclei: one for each click.
        clicks: ``(n, 2)`` column and row.

    Returns:
        The nuclei in their order without shared pixels; one that keeps none is left out, such as that of a
        second click on the same pixel.
    """
    nuclei = list(nuclei)
    for group in _overlapping_groups(nuclei):
        for index, mask in zip(group, _share(nuclei, group, clicks), strict=True):
            nuclei[index] = mask
    return [nucleus for nucleus in nuclei if nucleus.mask.size]


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
