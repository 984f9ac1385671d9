"""How certain a model is of an image's nuclei."""

from collections.abc import Iterable

import numpy as np

from nucsam_monai.utils.image_source import ImageSource, Region
from nucsam_monai.utils.prediction import NucleiPrediction

LEAST_SHARE = 0.1
FEWEST_NUCLEI = 5
SAMPLE_PX = 1024


def uncertainty(scores: Iterable[float]) -> float:
    """Return how uncertain the least certain nuclei of an image are, from 0 to 1.

    It is 1 minus the mean score of the tenth of the nuclei with the lowest scores, at least five of them. An
    image without nuclei has 0: there is nothing to correct that the model knows of.

    Example:
        >>> uncertainty([0.5, 1.0, 1.0])
        0.16666666666666663
        >>> uncertainty([])
        0.0
    """
    ranked = np.sort(np.fromiter(scores, dtype=np.float64))
    if not len(ranked):
        return 0.0
    least = ranked[: max(FEWEST_NUCLEI, round(LEAST_SHARE * len(ranked)))]
    return float(1 - np.clip(least, 0, 1).mean())


def sample_region(source: ImageSource) -> Region:
    """Return the middle of an image, at most :data:`SAMPLE_PX` each way: enough to judge a slide by."""
    width, height = min(source.width, SAMPLE_PX), min(source.height, SAMPLE_PX)
    return Region((source.width - width) // 2, (source.height - height) // 2, width, height)


def uncertainty_of(prediction: NucleiPrediction) -> float:
    """Return the uncertainty of what was found in an image."""
    return uncertainty(prediction.table["score"].tolist())
