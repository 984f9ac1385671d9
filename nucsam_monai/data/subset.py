"""Choose which items of a split are used, and how often each is drawn."""

from collections import Counter
from collections.abc import Mapping, Sequence
from math import sqrt
from typing import Any, Literal, TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from nucsam_monai.io import read_image
from nucsam_monai.utils.errors import ConfigurationError

Item = TypeVar("Item", bound=Mapping[str, object])
ImageKind = Literal["dark", "grey", "white_ground", "stained_ground"]
_LOOK_PX = 64


def first_of_each_domain(items: Sequence[Item], count: int | None) -> list[Item]:
    """Return the first items of each domain, in their order.

    Args:
        items: each with ``domain``.
        count: items of each domain; None takes all.

    Raises:
        ConfigurationError: the count is below 1.

    Example:
        >>> items = [{"domain": "a", "id": "1"}, {"domain": "a", "id": "2"}, {"domain": "b", "id": "3"}]
        >>> [item["id"] for item in first_of_each_domain(items, 1)]
        ['1', '3']
    """
    if count is None:
        return list(items)
    if count < 1:
        raise ConfigurationError(f"{count} images of each domain: expected 1 or more, or null for all.")
    taken: Counter[object] = Counter()
    chosen = []
    for item in items:
        taken[item["domain"]] += 1
        if taken[item["domain"]] <= count:
            chosen.append(item)
    return chosen


def image_kind(image: NDArray[np.uint8]) -> ImageKind:
    """Classify an image by the typical brightness and colour of its background.

    Args:
        image: ``(H, W, 3)`` uint8 RGB.

    Returns:
        ``dark`` for fluorescence, ``grey`` for bright images without colour, ``white_ground`` and ``stained_ground``
        for coloured stains on glass and on stained tissue.

    Example:
        >>> image_kind(np.zeros((8, 8, 3), dtype=np.uint8))
        'dark'
    """
    pixels = cv2.resize(image, (_LOOK_PX, _LOOK_PX), interpolation=cv2.INTER_AREA).reshape(-1, 3).astype(int)
    ground = np.median(pixels, axis=0)
    if ground.mean() < 100:
        return "dark"
    if np.ptp(pixels, axis=1).mean() < 8:
        return "grey"
    return "white_ground" if ground.mean() > 190 and np.ptp(ground) < 25 else "stained_ground"


def balanced_weights(items: Sequence[Mapping[str, Any]], crop_px: int) -> NDArray[np.float64]:
    """Compute sampling weights of training images, so that rare kinds are drawn more often and large images too.

    All domains are drawn equally often. Within a domain, a kind of image is drawn in proportion to the square root of
    its number of crops, and an image of this kind in proportion to its own number of crops.

    Args:
        items: training items with ``image`` (path) and ``domain``.
        crop_px: side length of a crop.

    Returns:
        ``(n,)``, with sum 1.
    """
    groups, crops = [], []
    for item in items:
        image = read_image(item["image"])
        groups.append((item["domain"], image_kind(image)))
        crops.append(max(1.0, image.shape[0] * image.shape[1] / crop_px**2))
    held: Counter[tuple[str, str]] = Counter()
    for group, count in zip(groups, crops, strict=True):
        held[group] += count  # type: ignore[assignment]
    per_domain: Counter[str] = Counter()
    for (domain, _), count in held.items():
        per_domain[domain] += sqrt(count)  # type: ignore[assignment]
    weights = np.array(
        [
            count / (sqrt(held[group]) * per_domain[group[0]])
            for group, count in zip(groups, crops, strict=True)
        ]
    )
    return weights / len(per_domain)
