import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from nucsam_monai.metrics import ContingencyTable, contingency_table
from nucsam_monai.metrics.pair import maximum_iou_assignment


def random_table(rng: np.random.Generator, n: int, m: int, overlaps_per_row: float) -> ContingencyTable:
    """A table of arbitrary overlaps, far more entangled than those of nuclei."""
    shared = rng.integers(1, 30, (n, m)) * (rng.random((n, m)) < overlaps_per_row / m)
    rows, columns = np.nonzero(shared)
    return ContingencyTable(
        y_ids=np.arange(1, n + 1),
        y_pred_ids=np.arange(1, m + 1),
        y_areas_px=shared.sum(1) + rng.integers(1, 50, n),
        y_pred_areas_px=shared.sum(0) + rng.integers(1, 50, m),
        overlap_rows=rows,
        overlap_columns=columns,
        overlap_areas_px=shared[rows, columns],
    )


def dense_ious(table: ContingencyTable) -> np.ndarray:
    dense = np.zeros((len(table.y_ids), len(table.y_pred_ids)))
    dense[table.overlap_rows, table.overlap_columns] = table.ious()
    return dense


@pytest.mark.parametrize("overlaps_per_row", [0.0, 0.7, 1.5, 4.0, 30.0])
@pytest.mark.parametrize("shape", [(1, 1), (9, 40), (40, 9), (60, 60), (90, 200), (200, 90)])
def test_reaches_the_maximum_of_the_dense_problem(shape: tuple[int, int], overlaps_per_row: float) -> None:
    rng = np.random.default_rng(3)
    for _ in range(10):
        table = random_table(rng, *shape, overlaps_per_row)
        pairs = maximum_iou_assignment(table)
        assert len(set(table.overlap_rows[pairs])) == len(set(table.overlap_columns[pairs])) == len(pairs)
        assert (np.diff(pairs) > 0).all()
        dense = dense_ious(table)
        maximum = dense[linear_sum_assignment(dense, maximize=True)].sum()
        assert table.ious()[pairs].sum() == pytest.approx(maximum, abs=1e-9)


def test_a_ring_of_equal_overlaps_is_paired_completely() -> None:
    # every strip is split evenly between two neighbours, so that no pair dominates
    y = np.repeat(np.arange(1, 51), 4).reshape(1, -1)
    table = contingency_table(y, np.roll(y, 2))
    assert len(table.overlap_rows) == 100
    assert len(maximum_iou_assignment(table)) == 50
