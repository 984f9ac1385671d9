import platform
from pathlib import Path

import pytest

from nucsam_monai.utils.machine import processor_name


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
