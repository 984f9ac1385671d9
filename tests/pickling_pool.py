"""Threads that take and return only what could go to other processes and back, without the time to start those."""

import pickle
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import pytest


class PicklingPool(ThreadPoolExecutor):
    """Stands in for a ``ProcessPoolExecutor``."""

    def __init__(self, workers: int, mp_context: object) -> None:
        super().__init__(workers)

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        return super().submit(_call, pickle.dumps((function, arguments)))


def _call(task: bytes) -> Any:
    function, arguments = pickle.loads(task)
    return pickle.loads(pickle.dumps(function(*arguments)))


def without_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let ``workers`` be threads; that real processes work is tested where they are started."""
    monkeypatch.setattr("nucsam_monai.utils.parallel.ProcessPoolExecutor", PicklingPool)
