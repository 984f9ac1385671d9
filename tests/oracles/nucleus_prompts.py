"""Negative points one distance at a time."""


def neighbours(points, nucleus, count):
    """Return the indices of the ``count`` nuclei nearest to one, ties by index, and None for missing ones."""
    x, y = points[nucleus]
    others = [
        ((float(other[0]) - x) ** 2 + (float(other[1]) - y) ** 2, index)
        for index, other in enumerate(points)
        if index != nucleus
    ]
    found = [index for _, index in sorted(others)[:count]]
    return found + [None] * (count - len(found))
