"""Bundle runs end with one sentence where their user gave a wrong value."""

import io
import json
import logging
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigWorkflow

from nucsam_monai.utils import exit as exit_module
from nucsam_monai.utils.errors import ConfigurationError, FailedImagesError, require_package
from nucsam_monai.utils.exit import (
    TRACEBACK_VARIABLE,
    _is_news,
    _print_sentence,
    _Stopping,
    own_error,
    shorten_errors_of_bundle_runs,
    unstopped,
)
from tests.bundles.runs import BUNDLES, TINY, write_datasets
from tests.tiny_bundles import SEGMENTING, Weights, micro, no_traces, weights

__all__ = ["micro", "no_traces", "weights"]

MISTAKES = {
    "unseen_domain": "no_such_domain",  # an unknown ``domain`` is not a mistake: this one answers
    "domains": ["no_such_domain"],
    "dataset_dir": "/no/such/folder",
    "checkpoint": "/no/such/model.safetensors",
    "precision": "fp17",
}


def mistakes() -> list[tuple[str, str, str]]:
    """Return bundle, configuration and key of every mistake that can be made."""
    return [
        (name, config, key)
        for name in sorted(folder.name for folder in BUNDLES.iterdir() if folder.is_dir())
        for config in ("train", "inference")
        if (BUNDLES / name / "configs" / f"{config}.json").is_file()
        for key in MISTAKES
        if key in config_of(name, config) and (config, key) != ("inference", "domains")
    ]


def config_of(name: str, config: str) -> dict[str, Any]:
    return dict(json.loads((BUNDLES / name / "configs" / f"{config}.json").read_text()))


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


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_datasets(tmp_path_factory.mktemp("datasets")))


@pytest.mark.parametrize(("name", "config", "key"), mistakes())
def test_a_mistake_in_a_bundle_run_ends_with_the_sentence(
    name: str,
    config: str,
    key: str,
    datasets: str,
    weights: dict[str, Weights],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    known = config_of(name, config)
    options: dict[str, Any] = {**TINY, **(weights[name].settings if name in SEGMENTING else {})}
    if config == "inference":
        options["checkpoint"] = str(weights[name].path)
    options |= {"dataset_dir": datasets, "output_dir": str(tmp_path), key: MISTAKES[key]}
    log = io.StringIO()
    handler = logging.StreamHandler(log)
    handler.addFilter(_is_news)
    logging.getLogger().addHandler(handler)
    try:
        with pytest.raises(Exception) as caught:
            run(BUNDLES / name, config, {one: value for one, value in options.items() if one in known})
    finally:
        logging.getLogger().removeHandler(handler)
    capsys.readouterr()
    _print_sentence(caught.type, caught.value, caught.tb)
    own, written = own_error(caught.value), capsys.readouterr().err
    assert own is not None, caught.value
    assert written == f"{own}\n"
    wrong = MISTAKES[key]
    assert (wrong if isinstance(wrong, str) else wrong[0]) in written
    assert "Traceback" not in log.getvalue() + written


def run(folder: Path, config: str, options: dict[str, Any]) -> None:
    workflow = ConfigWorkflow(
        config_file=str(folder / "configs" / f"{config}.json"),
        logging_file=False,
        workflow_type="train" if config == "train" else "infer",
        bundle_root=str(folder),
        **options,
    )
    workflow.initialize()
    workflow.run()


def record(name: str, level: int, error: BaseException | None) -> logging.LogRecord:
    return logging.LogRecord(name, level, "", 0, "", (), (type(error), error, None) if error else None)


def test_the_log_leaves_out_that_our_error_is_on_its_way() -> None:
    assert not _is_news(record("ignite.engine", logging.ERROR, wrapped()))
    assert _is_news(record("ignite.engine", logging.ERROR, RuntimeError("other")))
    assert _is_news(record("ignite.engine", logging.WARNING, wrapped()))
    assert _is_news(record("nucsam_monai.engines", logging.ERROR, wrapped()))
    assert _is_news(record("ignite.engine", logging.ERROR, None))
    assert not _is_news(record("ignite.engine", logging.ERROR, SystemExit(143)))
    start = logging.makeLogRecord({"msg": "Engine run resuming from iteration 0, epoch 0", "levelno": 20})
    assert not _is_news(start)
    try:
        raise wrapped()
    except RuntimeError:  # Ignite logs here, without the exception
        assert not _is_news(record("ignite.engine", logging.ERROR, None))


def test_errors_that_are_not_ours_keep_their_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    error = RuntimeError("other")
    _print_sentence(RuntimeError, error, None)
    assert "RuntimeError: other" in capsys.readouterr().err


@pytest.fixture
def stopping(monkeypatch: pytest.MonkeyPatch) -> _Stopping:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(exit_module, "_stopping", _Stopping())
    exit_module._stopping.process = os.getpid()
    for number in before:
        signal.signal(number, exit_module._stopping)
    yield exit_module._stopping
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_the_process_with_its_code(
    number: signal.Signals, stopping: _Stopping, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(SystemExit) as stopped:
        signal.raise_signal(number)
    assert stopped.value.code == 128 + number
    assert f"stopped by {number.name}." in caplog.text
    assert signal.getsignal(number) == signal.SIG_DFL


def test_what_is_being_written_is_written_to_its_end(stopping: _Stopping) -> None:
    written = []

    def write() -> None:
        with unstopped():
            with unstopped():
                signal.raise_signal(signal.SIGTERM)
            written.append("all")

    with pytest.raises(SystemExit):
        write()
    assert written == ["all"]


def test_a_worker_is_interrupted_as_ever(stopping: _Stopping) -> None:
    stopping.process = 0
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_an_error_may_have_its_own_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    error = FailedImagesError("1 of 3 images failed.")
    with pytest.raises(SystemExit) as ended:
        _print_sentence(FailedImagesError, error, None)
    assert ended.value.code == 3
    assert capsys.readouterr().err == "1 of 3 images failed.\n"


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


@pytest.mark.slow
def test_the_traceback_is_shown_on_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    found = infer("unsam", checkpoint=str(tmp_path / "none.safetensors"), output_dir=str(tmp_path))
    assert "Traceback" in found.stdout


def test_a_missing_package_is_named_with_the_extra_that_has_it() -> None:
    require_package("torch", "encoder 'resnet50'")
    sentence = (
        "encoder 'resnet50': no-such-package is not installed. Run: pip install 'nucsam-monai[systems]'."
    )
    with pytest.raises(ConfigurationError, match=re.escape(sentence)):
        require_package("no_such_package", "encoder 'resnet50'")
