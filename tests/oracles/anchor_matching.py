"""Every way to give nuclei anchors of their own, tried one after the other."""

import math
from itertools import permutations


def cheapest_anchors(points, probabilities, nuclei, classes, distance_weight=0.1):
    """Return ``(anchors, cost)``; all numbers are plain Python ones."""

    def pair_cost(anchor, nucleus):
        distance = math.dist(points[anchor], nuclei[nucleus])
        return distance_weight * distance - probabilities[anchor][classes[nucleus]]

    best, lowest = (), math.inf
    for anchors in permutations(range(len(points)), len(nuclei)):
        cost = sum(pair_cost(anchor, nucleus) for nucleus, anchor in enumerate(anchors))
        if cost < lowest:
            best, lowest = anchors, cost
    return best, lowest
