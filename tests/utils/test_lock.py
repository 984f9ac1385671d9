"""Two processes in one folder."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from nucsam_monai.utils.errors import ConfigurationError, OutputError
from nucsam_monai.utils.lock import LOCK_NAME, FolderLock

HERE = socket.gethostname()


@pytest.fixture
def gone() -> int:
    """The number of a process that no longer runs."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def write_lock(folder: Path, host: str, process: object) -> Path:
    path = folder / LOCK_NAME
    path.write_text(json.dumps({"host": host, "process": process, "since": "2026-01-02 03:04:05"}))
    return path


def test_a_folder_is_left_without_a_trace(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path / "new")
    lock.acquire()
    assert json.loads(lock.path.read_text())["process"] == os.getpid()
    lock.acquire()
    lock.release()
    lock.release()
    assert list((tmp_path / "new").iterdir()) == []


@pytest.mark.parametrize(("host", "process"), [(HERE, os.getppid()), ("elsewhere", 1), (HERE, "?")])
def test_who_holds_the_folder_is_named(tmp_path: Path, host: str, process: object) -> None:
    path = write_lock(tmp_path, host, process)
    lock = FolderLock(tmp_path)
    with pytest.raises(ConfigurationError, match=f"process .* on {host} since 2026-01-02 03:04:05"):
        lock.acquire()
    lock.release()
    assert path.is_file()


def test_the_lock_of_a_dead_process_is_taken_over(tmp_path: Path, gone: int) -> None:
    write_lock(tmp_path, HERE, gone)
    lock = FolderLock(tmp_path)
    lock.acquire()
    assert json.loads(lock.path.read_text())["process"] == os.getpid()


def test_a_damaged_lock_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("")
    with pytest.raises(ConfigurationError, match=f"remove {tmp_path / LOCK_NAME}"):
        FolderLock(tmp_path).acquire()


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="can't be written"):
        FolderLock(tmp_path / "file").acquire()
