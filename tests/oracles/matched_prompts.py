"""Which found point stands for which nucleus, one point at a time."""

import math


def best_point_of_each(points, scores, instances):
    """Return ``{instance id: row of its surest point}``; of equal scores the first row wins."""
    best = {}
    for row, (x, y) in enumerate(points):
        column, line = math.floor(x + 0.5), math.floor(y + 0.5)
        if not (0 <= line < len(instances) and 0 <= column < len(instances[0])):
            continue
        nucleus = int(instances[line][column])
        if nucleus and (nucleus not in best or scores[row] > scores[best[nucleus]]):
            best[nucleus] = row
    return best
