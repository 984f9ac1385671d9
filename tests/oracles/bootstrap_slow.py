"""Cluster bootstrap of a mean by plain loops."""

import math
import random
from collections.abc import Hashable, Sequence


def bootstrap_interval_of_mean(
    values: Sequence[float], units: Sequence[Hashable], resamples: int, seed: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Draw whole units with replacement and average the values of all their images that are not NaN."""
    draw = random.Random(seed)
    members: dict[Hashable, list[float]] = {}
    for value, unit in zip(values, units, strict=True):
        members.setdefault(unit, []).append(value)
    names = list(members)
    means = []
    for _ in range(resamples):
        drawn = [value for _ in names for value in members[draw.choice(names)] if not math.isnan(value)]
        if drawn:
            means.append(sum(drawn) / len(drawn))
    means.sort()
    tail = (1 - confidence) / 2
    return means[round(tail * (len(means) - 1))], means[round((1 - tail) * (len(means) - 1))]
