"""Images that the tests of an evaluation measure."""

import numpy as np

from nucsam_monai.metrics import (
    Bootstrap,
    EvaluationSample,
)
from tests.metrics.label_maps import pair_of_discs

FEW = Bootstrap(resamples=100)
CLASSES = ("round", "oval", "rare")
EMPTY = np.zeros((96, 96), np.int32)


def sample(index, **options):
    """A crowded pair of maps with classes; every fourth image is empty in the ground truth."""
    y, y_pred = pair_of_discs(index, count=12)
    if index % 4 == 3:
        y = EMPTY
    rng = np.random.default_rng(index)
    texts = {"tissue": f"tissue{index % 2}", "domain": "a", "fold": str(index % 3)}
    return EvaluationSample(
        id=f"{index:02}",
        y=y,
        y_pred=y_pred,
        y_classes={int(i): int(rng.integers(2)) for i in np.unique(y) if i},
        y_pred_classes={int(i): int(rng.integers(2)) for i in np.unique(y_pred) if i},
        scores={int(i): float(rng.random()) for i in np.unique(y_pred) if i},
        **{**texts, **options},
    )


SAMPLES = [sample(index) for index in range(9)]
