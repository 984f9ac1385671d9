"""Pair instances that overlap, or points within a radius, one to one."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components, min_weight_full_bipartite_matching

_LARGEST_DENSE_COMPONENT = 10_000  # elements of the matrix; above, the sparse solver is faster


def maximum_weight_assignment(
    rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Choose pairs, no row and no column twice, so that the sum of their weights is as large as possible.

    The assignment is exact and never builds the ``(n, m)`` matrix. A pair whose weight exceeds the best other
    weight of its row plus the best other weight of its column is in every maximum. Such pairs are chosen first; in a
    good prediction that is nearly all of them. The others form connected components of the graph of pairs, and each
    component is solved separately.

    Args:
        rows: ``(k,)`` row of each possible pair, from 0.
        columns: ``(k,)`` column of each possible pair, from 0.
        weights: ``(k,)`` gain of each possible pair, > 0; pairs that aren't listed are impossible.

    Returns:
        Indices into the possible pairs, in ascending order.
    """
    settled, open_pairs = _settle_dominant_pairs(rows, columns, weights)
    for component in _components(rows, columns, open_pairs):
        chosen = _assign(rows[component], columns[component], weights[component])
        settled.append(component[chosen])
    return np.sort(np.concatenate(settled))


def _settle_dominant_pairs(
    rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[list[NDArray[np.int64]], NDArray[np.int64]]:
    """Return the pairs that are in every maximum, round by round, and the pairs that are still open."""
    settled: list[NDArray[np.int64]] = []
    pairs = np.argsort(weights)
    while True:
        row, column, weight = rows[pairs], columns[pairs], weights[pairs]
        best_of_row, next_of_row = _best_two(row, weight)
        best_of_column, next_of_column = _best_two(column, weight)
        position = np.arange(len(pairs))
        dominant = (best_of_row[row] == position) & (best_of_column[column] == position)
        dominant &= weight > next_of_row[row] + next_of_column[column]
        settled.append(pairs[dominant])
        if not dominant.any():
            return settled, pairs
        pairs = pairs[~(_contains(row[dominant], row) | _contains(column[dominant], column))]


def _best_two(
    groups: NDArray[np.int64], weights: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return, for every group, the position of its largest weight and the value of its second largest (or 0).

    ``weights`` must rise: of repeated indices NumPy keeps the last assignment, which is then the largest.
    """
    count = int(groups.max(initial=-1)) + 1
    positions = np.arange(len(groups))
    best = np.zeros(count, dtype=np.int64)
    best[groups] = positions
    others = best[groups] != positions
    runner_up = np.zeros(count)
    runner_up[groups[others]] = weights[others]
    return best, runner_up


def _contains(members: NDArray[Any], values: NDArray[Any]) -> NDArray[np.bool_]:
    flags = np.zeros(int(values.max(initial=-1)) + 1, dtype=bool)
    flags[members] = True
    return flags[values]


def _components(
    rows: NDArray[np.int64], columns: NDArray[np.int64], pairs: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Split pairs by the connected component of their graph that they lie in."""
    if not pairs.size:
        return []
    row_ids, row = np.unique(rows[pairs], return_inverse=True)
    column_ids, column = np.unique(columns[pairs], return_inverse=True)
    nodes = len(row_ids) + len(column_ids)
    graph = coo_array((np.ones(len(pairs)), (row, column + len(row_ids))), shape=(nodes, nodes))
    _, component_of_node = connected_components(graph, directed=False)
    component = component_of_node[row]
    order = np.argsort(component, kind="stable")
    return np.split(pairs[order], np.flatnonzero(np.diff(component[order])) + 1)


def _assign(
    rows: NDArray[np.int64], columns: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Return which of the pairs of one component make up its maximum-weight assignment."""
    from scipy.optimize import linear_sum_assignment  # takes a fifth of a second, which --help need not spend

    row_ids, row = np.unique(rows, return_inverse=True)
    column_ids, column = np.unique(columns, return_inverse=True)
    if len(row_ids) * len(column_ids) > _LARGEST_DENSE_COMPONENT:
        return _assign_sparse(row, column, weights)
    gain = np.zeros((len(row_ids), len(column_ids)))
    gain[row, column] = weights
    pair = np.full(gain.shape, -1, dtype=np.int64)
    pair[row, column] = np.arange(len(rows))
    assigned = pair[linear_sum_assignment(gain, maximize=True)]
    return assigned[assigned >= 0]  # the solver fills up with pairs that share nothing


def _assign_sparse(
    row: NDArray[np.int64], column: NDArray[np.int64], weights: NDArray[np.float64]
) -> NDArray[np.int64]:
    """Solve one component without its ``(n, m)`` matrix: every row may also stay alone, at no gain."""
    rows, columns = int(row.max()) + 1, int(column.max()) + 1
    alone = np.arange(rows)
    cost_alone = 2 * weights.max()  # the solver takes a cost of 0 for a missing pair
    costs = np.concatenate((cost_alone - weights, np.full(rows, cost_alone)))
    ends = np.concatenate((row, alone)), np.concatenate((column, columns + alone))
    matched = min_weight_full_bipartite_matching(
        coo_array((costs, ends), shape=(rows, columns + rows)).tocsr()
    )
    partner = np.full(rows, -1)
    partner[matched[0]] = matched[1]
    return np.flatnonzero(partner[row] == column)
