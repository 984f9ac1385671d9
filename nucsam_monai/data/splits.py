"""Split samples reproducibly without dividing a slide or patient, and reproduce published splits."""

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np

from nucsam_monai.utils.errors import ConfigurationError

SPLITS = ("training", "validation", "test")
"""The keys of ``dataset.json`` that hold items, as in MONAI's datalists."""

TRAIN_80_10_10: Mapping[str, float] = {"training": 0.8, "validation": 0.1, "test": 0.1}
SPLIT_SEED = 42


def split_counts(total: int, fractions: Mapping[str, float]) -> dict[str, int]:
    """Turn fractions into counts.

    Every split but the first is rounded half up; the first takes the rest. 80/10/10 of 670 is 536/67/67,
    of 664 it is 532/66/66.

    Args:
        total: number of samples.
        fractions: ``{split name: fraction}``, in order, each from 0 to 1, with the sum 1.

    Raises:
        ConfigurationError: a fraction is out of range, or the sum is not 1.

    Example:
        >>> split_counts(670, {"training": 0.8, "validation": 0.1, "test": 0.1})
        {'training': 536, 'validation': 67, 'test': 67}
    """
    # The decimals as written: 0.15 of 30 is 4.5 and rounds up, whatever its binary value is.
    exact = {name: Fraction(str(fraction)) for name, fraction in fractions.items()}
    if not exact or sum(exact.values()) != 1 or not all(0 <= fraction <= 1 for fraction in exact.values()):
        raise ConfigurationError(
            f"split fractions {dict(fractions)}: expected numbers from 0 to 1 with the sum 1."
        )
    first, *others = exact
    counts = {first: total}
    for name in others:
        # Never more than what is left: many small fractions of few samples all round up.
        counts[name] = min(math.floor(exact[name] * total + Fraction(1, 2)), counts[first])
        counts[first] -= counts[name]
    return counts


def random_split(
    ids: Iterable[str],
    fractions: Mapping[str, float] = TRAIN_80_10_10,
    seed: int = SPLIT_SEED,
    groups: Mapping[str, str] | None = None,
) -> dict[str, list[str]]:
    """Split samples at random, with the same result on every machine.

    The sorted ids are permuted by ``numpy.random.default_rng(seed)`` and divided as in :func:`split_counts`. With
    groups, the sorted groups are permuted instead, and each group is assigned as a whole to the split of its middle
    sample, so the counts are met as closely as possible. The order of ``ids`` does not matter.

    Args:
        ids: sample ids, each once.
        fractions: ``{split name: fraction}`` with the sum 1.
        seed: seed of the permutation.
        groups: ``{sample id: slide or patient}``; a sample without one is its own group.

    Returns:
        ``{split name: sorted ids}`` with every name of ``fractions``.

    Raises:
        ConfigurationError: an id occurs twice, or the fractions are wrong.

    Example:
        >>> random_split(["a", "b", "c", "d"], {"training": 0.5, "test": 0.5}, seed=0)
        {'training': ['a', 'c'], 'test': ['b', 'd']}
    """
    members: dict[tuple[bool, str], list[str]] = {}
    for sample_id in sorted(ids):
        # The flag keeps a sample without a group apart from a group of the same name.
        key = (True, groups[sample_id]) if groups and sample_id in groups else (False, sample_id)
        members.setdefault(key, []).append(sample_id)
    total = sum(len(samples) for samples in members.values())
    if total != len({sample_id for samples in members.values() for sample_id in samples}):
        raise ConfigurationError("random_split: a sample id occurs twice.")

    counts = split_counts(total, fractions)
    names = list(counts)
    ends = np.cumsum(list(counts.values()))
    splits: dict[str, list[str]] = {name: [] for name in names}
    keys = sorted(members)
    placed = 0
    for position in np.random.default_rng(seed).permutation(len(keys)):
        samples = members[keys[position]]
        middle = placed + len(samples) / 2
        splits[names[int(np.searchsorted(ends, middle))]].extend(samples)
        placed += len(samples)
    return {name: sorted(samples) for name, samples in splits.items()}


def last_fraction(ids: Iterable[str], fraction: float) -> tuple[list[str], list[str]]:
    """Cut the last part, rounded half up, off the sorted ids: ``(the rest, the last part)``.

    Raises:
        ConfigurationError: ``fraction`` is not from 0 to 1.

    Example:
        >>> last_fraction(["b", "a", "c"], 0.34)
        (['a', 'b'], ['c'])
    """
    ordered = sorted(ids)
    if not 0 <= fraction <= 1:
        raise ConfigurationError(f"fraction {fraction}: expected a number from 0 to 1.")
    kept = len(ordered) - math.floor(Fraction(str(fraction)) * len(ordered) + Fraction(1, 2))
    return ordered[:kept], ordered[kept:]


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
    # What is left is drawn too, although there is nothing to choose: it takes numbers from the generator.
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
