import ctypes
import platform
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from nucsam_monai.utils.machine import processor_name, reuse_freed_memory


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
    [
        ("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nflags\t: a b\n", "Some CPU @ 2 GHz"),
        ("Features : x", "arm"),
    ],
)
def test_model_or_architecture(monkeypatch: pytest.MonkeyPatch, cpuinfo: str, expected: str) -> None:
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    monkeypatch.setattr(Path, "read_text", lambda path: cpuinfo)
    monkeypatch.setattr(platform, "processor", lambda: "arm")
    assert processor_name() == expected


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries decide for themselves")
def test_freed_memory_serves_the_next_tensor(monkeypatch: pytest.MonkeyPatch) -> None:
    resource = pytest.importorskip("resource")
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    reuse_freed_memory()

    def page_faults() -> int:
        several = [torch.ones(24 << 20, dtype=torch.uint8) for _ in range(4)]
        del several
        return int(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)

    counts = [page_faults() for _ in range(10)]
    assert counts[-1] - counts[-5] < 1000  # 24,000 in each round where the memory goes back to the system


def test_allocation_is_left_alone_where_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: None) -> Callable[..., int]:
        raise AssertionError

    monkeypatch.setattr(ctypes, "CDLL", refuse)
    monkeypatch.setenv("MALLOC_ARENA_MAX", "2")
    reuse_freed_memory()
