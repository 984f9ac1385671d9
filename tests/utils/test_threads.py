import os
import sys
from pathlib import Path

import pytest

from nucsam_monai.utils import threads
from nucsam_monai.utils.threads import (
    COUNT,
    POLICY,
    idle_cores,
    sensible_threads,
    usable_cores,
    wait_passively,
)


@pytest.fixture(autouse=True)
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(POLICY, raising=False)
    monkeypatch.delenv(COUNT, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)


def test_threads_sleep_unless_the_user_chose_or_it_is_too_late(monkeypatch: pytest.MonkeyPatch) -> None:
    wait_passively()
    assert "torch" in sys.modules
    assert POLICY not in os.environ
    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setenv(POLICY, "ACTIVE")
    wait_passively()
    assert os.environ[POLICY] == "ACTIVE"
    monkeypatch.delenv(POLICY)
    wait_passively()
    assert os.environ[POLICY] == "PASSIVE"


@pytest.mark.parametrize(
    ("variables", "idle", "expected"),
    [
        ({COUNT: "3"}, 0.0, 3),
        ({POLICY: "passive"}, 0.0, 4),
        ({}, 4.0, 4),
        ({}, 2.2, 2),
        ({}, 0.1, 1),
        ({POLICY: "ACTIVE"}, 1.0, 1),
    ],
)
def test_spinning_threads_get_the_idle_cores(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], idle: float, expected: int
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(threads, "idle_cores", lambda: idle)
    count, reason = sensible_threads()
    assert count == expected
    assert COUNT in reason or POLICY in reason


@pytest.mark.parametrize(
    ("limit", "expected"), [("150000 100000", 2), ("10000 100000", 1), ("max 100000", 4)]
)
def test_a_container_limits_the_cores(monkeypatch: pytest.MonkeyPatch, limit: str, expected: int) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: limit)
    assert usable_cores() == expected


def test_idle_cores_are_those_that_nobody_used_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = iter(["cpu 100 0 0 100 0 0 0 0 0 0\n", "cpu 130 0 0 105 5 0 0 0 0 0\n"])
    monkeypatch.setattr(Path, "read_text", lambda path: next(texts))
    assert idle_cores(0.0) == pytest.approx(4 * 10 / 40)
    monkeypatch.setattr(threads, "_processor_ticks", lambda: (0, 0))
    assert idle_cores(0.0) == 4
