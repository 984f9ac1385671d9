"""The class of a nucleus where the classes come as a map of pixels."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from nucsam_monai.utils.label_runs import label_runs


def majority_values(instances: NDArray[Any], values: NDArray[Any]) -> dict[int, int]:
    """Give every instance the value of most of its pixels.

    The value 0 does not vote, and equal votes go to the lower value.

    Args:
        instances: ``(H, W)`` integers >= 0, 0 = background.
        values: ``(H, W)`` integers >= 0, 0 = no class.

    Returns:
        ``{instance id: value}`` in rising order of the ids; an instance without any vote is left out.

    Example:
        >>> majority_values(np.array([[1, 1, 7, 9]]), np.array([[2, 0, 3, 0]]))
        {1: 2, 7: 3}
    """
    runs = label_runs(instances, values)
    run_ids, run_values = instances.ravel()[runs.starts], values.ravel()[runs.starts]
    voting = (run_ids > 0) & (run_values > 0)
    ids, rows = np.unique(run_ids[voting], return_inverse=True)
    candidates, columns = np.unique(run_values[voting], return_inverse=True)
    ballots, ballot_of_run = np.unique(rows * len(candidates) + columns, return_inverse=True)
    votes = np.bincount(ballot_of_run, weights=runs.lengths[voting], minlength=len(ballots))
    rows, columns = np.divmod(ballots, max(len(candidates), 1))
    best_first = np.lexsort((columns, -votes, rows))
    _, first = np.unique(rows[best_first], return_index=True)
    winners = candidates[columns[best_first[first]]]
    return dict(zip(ids.tolist(), winners.tolist(), strict=True))
