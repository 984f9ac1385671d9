from collections.abc import Iterator

import pytest

from nucsam_monai.utils.errors import DatasetError
from nucsam_monai.utils.parallel import map_in_order
from tests.pickling_pool import without_processes


def square_or_fail(number: int) -> int:
    if number == 7:
        raise DatasetError("seven")
    return number * number


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_and_errors_come_through(workers: int) -> None:
    results = map_in_order(square_or_fail, iter([3, 1, 2, 7, 4]), workers=workers)
    assert [next(results) for _ in range(3)] == [(3, 9), (1, 1), (2, 4)]
    with pytest.raises(DatasetError, match="seven"):
        next(results)


def test_only_a_few_items_are_taken_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    without_processes(monkeypatch)
    taken = []

    def items() -> Iterator[int]:
        for number in range(100, 1000):
            taken.append(number)
            yield number

    results = map_in_order(square_or_fail, items(), workers=2)
    next(results)
    assert len(taken) <= 10
    results.close()  # type: ignore[attr-defined]
