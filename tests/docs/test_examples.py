"""The examples in the docstrings give what they say, and leave no files."""

import doctest
import importlib
from pathlib import Path

import pytest

from tests.bundles.runs import REPOSITORY

FILES = [file for file in (REPOSITORY / "nucsam_monai").rglob("*.py") if ">>> " in file.read_text()]


def test_examples_give_what_they_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    modules = (".".join(file.relative_to(REPOSITORY).with_suffix("").parts) for file in FILES)
    results = [
        doctest.testmod(importlib.import_module(module.removesuffix(".__init__"))) for module in modules
    ]
    assert sum(result.failed for result in results) == 0
    assert sum(result.attempted for result in results) > 200
    assert not list(tmp_path.iterdir())
