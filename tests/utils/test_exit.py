import subprocess
import sys
from pathlib import Path

import pytest

from nucsam_monai.utils.errors import ConfigurationError
from nucsam_monai.utils.exit import TRACEBACK_VARIABLE, own_error, shorten_errors_of_bundle_runs
from tests.bundles.runs import BUNDLES


def wrapped() -> RuntimeError:
    try:
        try:
            raise ConfigurationError("lr -1: expected a positive number.")
        except ConfigurationError as error:
            raise RuntimeError("Failed to evaluate") from error
    except RuntimeError as error:
        return error


def test_own_error_is_found_behind_those_that_wrap_it() -> None:
    assert str(own_error(wrapped())) == "lr -1: expected a positive number."
    assert own_error(RuntimeError("other")) is None


def test_other_programs_keep_their_hook() -> None:
    before = sys.excepthook
    shorten_errors_of_bundle_runs()
    assert sys.excepthook is before


def infer(bundle: str, **options: str) -> subprocess.CompletedProcess[str]:
    arguments = [part for key, value in options.items() for part in (f"--{key}", value)]
    config = str(BUNDLES / bundle / "configs" / "inference.json")
    command = [sys.executable, "-m", "monai.bundle", "run", "--config_file", config, *arguments]
    return subprocess.run(
        command, cwd=BUNDLES.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_a_bundle_run_ends_with_the_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = {"checkpoint": str(tmp_path / "none.safetensors"), "output_dir": str(tmp_path)}
    monkeypatch.delenv(TRACEBACK_VARIABLE, raising=False)
    found = infer("unsam", **options)
    assert found.returncode == 1
    assert found.stdout.splitlines()[-1].startswith(f"{options['checkpoint']}: no such file.")
    assert "Traceback" not in found.stdout
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert "Traceback" in infer("unsam", **options).stdout
