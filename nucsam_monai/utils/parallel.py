"""Work on many items in several processes, in order and without holding all of them."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from multiprocessing import get_context
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_AHEAD = 4  # items per worker that wait or are worked on: enough to keep it busy, few enough to hold


def map_in_order(
    function: Callable[[Item], Result], items: Iterable[Item], *, workers: int
) -> Iterator[tuple[Item, Result]]:
    """Yield ``(item, function(item))`` in the order of the items.

    Args:
        function: called in the workers, which are fresh processes; like the items and the results it must be
            picklable.
        items: taken a few ahead of the results, so that an iterator may produce large items.
        workers: number of processes; 1 calls ``function`` in this process.

    Raises:
        Exception: the first exception of ``function``; what was not begun is cancelled.

    Example:
        >>> list(map_in_order(abs, [-1, 2], workers=1))
        [(-1, 1), (2, 2)]
    """
    if workers <= 1:
        for item in items:
            yield item, function(item)
        return
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    # Fresh processes, because threads of NumPy and of open archives do not survive a fork.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(function, item)))
                if len(waiting) >= _AHEAD * workers:
                    done, future = waiting.popleft()
                    yield done, future.result()
            while waiting:
                done, future = waiting.popleft()
                yield done, future.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)
