"""Splits that publications drew with scikit-learn, drawn again without it.

Both use NumPy's legacy generator, whose numbers are guaranteed never to change.
"""

import math
from collections.abc import Sequence

import numpy as np


def shuffled_folds(count: int, folds: int, seed: int) -> list[np.ndarray]:
    """Draw the test indices of ``sklearn.model_selection.KFold(folds, shuffle=True, random_state=seed)``.

    The indices are shuffled and cut into runs; the first ``count % folds`` runs have one more.

    Args:
        count: number of samples.
        folds: number of folds.
        seed: seed of the shuffle.

    Returns:
        One sorted integer array per fold.

    Example:
        >>> [fold.tolist() for fold in shuffled_folds(5, 2, seed=19)]
        [[1, 3, 4], [0, 2]]
    """
    indices = np.arange(count)
    _legacy_generator(seed).shuffle(indices)
    return [np.sort(fold) for fold in np.array_split(indices, folds)]


def stratified_shuffle(
    strata: Sequence[str], training_fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw the first split of scikit-learn's ``StratifiedShuffleSplit(random_state=seed)``.

    Each stratum is permuted and cut so that its share of the training samples is that of all samples, rounded
    down; what is left goes to the strata with the largest remainders, among equal ones at random.

    Args:
        strata: stratum of each sample.
        training_fraction: from 0 to 1; the number of training samples is rounded down, the others are test
            samples.
        seed: seed of the permutations.

    Returns:
        Sorted indices of the training samples and of the test samples.
    """
    random = _legacy_generator(seed)
    _, stratum_of_sample, sizes = np.unique(list(strata), return_inverse=True, return_counts=True)
    training_count = math.floor(training_fraction * len(strata))
    training_sizes = _proportional_counts(sizes, training_count, random)
    # What is left is drawn too, though there is no choice: it takes numbers from the generator.
    test_sizes = _proportional_counts(sizes - training_sizes, len(strata) - training_count, random)
    training, test = [], []
    for stratum, (first, second) in enumerate(zip(training_sizes, test_sizes, strict=True)):
        members = np.flatnonzero(stratum_of_sample == stratum)
        shuffled = members[random.permutation(len(members))]
        training.append(shuffled[:first])
        test.append(shuffled[first : first + second])
    return np.sort(np.concatenate(training)), np.sort(np.concatenate(test))


def _proportional_counts(sizes: np.ndarray, total: int, random: np.random.RandomState) -> np.ndarray:
    """Divide ``total`` among strata of the given sizes; equal remainders are drawn for at random."""
    exact = sizes / sizes.sum() * total
    counts = np.floor(exact).astype(int)
    remainders = exact - counts
    missing = total - int(counts.sum())
    for remainder in np.unique(remainders)[::-1]:
        if not missing:
            break
        tied = np.flatnonzero(remainders == remainder)
        chosen = random.choice(tied, size=min(len(tied), missing), replace=False)
        counts[chosen] += 1
        missing -= len(chosen)
    return counts


def _legacy_generator(seed: int) -> np.random.RandomState:
    return np.random.RandomState(seed)
