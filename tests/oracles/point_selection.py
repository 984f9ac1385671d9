"""The choice of point prompts pixel by pixel; pixels are (y, x)."""

import numpy as np

from tests.oracles.flood_fill import flood_fill


def squared_distance(pixel, other):
    return (pixel[0] - other[0]) ** 2 + (pixel[1] - other[1]) ** 2


def outside_of(inside, shape):
    """All pixels that are not inside, and a frame around the image."""
    height, width = shape
    every = {(y, x) for y in range(-1, height + 1) for x in range(-1, width + 1)}
    return every - set(inside)


def distance_to(pixel, others):
    return min(squared_distance(pixel, other) for other in others)


def innermost(inside, shape):
    """The pixel farthest from the outside, the first one in reading order among equals."""
    outside = outside_of(inside, shape)
    return max(sorted(inside), key=lambda pixel: distance_to(pixel, outside))


def component_centres(mask):
    """One pixel per 8-connected component: its rounded centroid, or its innermost pixel."""
    centres = []
    for component in flood_fill(mask):
        mean = np.mean(sorted(component), axis=0)
        centroid = tuple(int(np.floor(value + 0.5)) for value in mean)
        centres.append(centroid if centroid in component else innermost(component, mask.shape))
    return centres


def farthest_pixels(mask, count):
    """Greedily the pixel farthest from the outside and from the pixels before."""
    inside = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask), strict=True)}
    taken, pixels = outside_of(inside, mask.shape), []
    while len(pixels) < min(count, len(inside)):
        pixels.append(max(sorted(inside), key=lambda pixel: distance_to(pixel, taken)))
        taken.add(pixels[-1])
    return pixels
