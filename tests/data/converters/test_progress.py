import sys

import pytest

from nucsam_monai.data.converters.progress import with_progress


@pytest.mark.parametrize("terminal", [True, False])
def test_items_come_through_and_no_bar_without_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert list(with_progress([3, 1, 2], "toy", "image")) == [3, 1, 2]
    assert terminal or capsys.readouterr().err == ""
