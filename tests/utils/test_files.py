import hashlib
import os
from pathlib import Path

import pytest

from nucsam_monai.utils.files import atomic_directory, atomic_path, sha256_of_file


def test_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "table.csv"
    with atomic_path(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.suffix == ".csv"
        temporary.write_text("content")
        assert not path.exists()
    assert path.read_text() == "content"
    assert list(path.parent.iterdir()) == [path]


def write_half_then_raise(path: Path, error: type[BaseException]) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text("half")
        raise error


def fill_half_then_raise(target: Path) -> None:
    with atomic_directory(target) as folder:
        (folder / "a").write_text("half")
        raise RuntimeError


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_error_in_the_block_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")
    with pytest.raises(error):
        write_half_then_raise(path, error)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("call", ["os.fsync", "Path.replace"])
def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch, call: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text("old")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"nucsam_monai.utils.files.{call}", fail)
    with pytest.raises(OSError, match="No space"), atomic_path(path) as temporary:
        temporary.write_text("new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_block_that_removes_its_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "a.txt") as temporary:
        temporary.unlink()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="POSIX permissions")
def test_permissions_are_those_of_an_ordinary_new_file(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        with atomic_path(tmp_path / "a.txt") as temporary:
            temporary.write_text("x")
        with atomic_directory(tmp_path / "folder") as folder:
            (folder / "b").write_text("x")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o640
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o750


def test_directory_appears_complete_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "data" / "set"
    with pytest.raises(RuntimeError):
        fill_half_then_raise(target)
    assert list(target.parent.iterdir()) == []
    target.mkdir()
    with atomic_directory(target) as folder:
        (folder / "a").write_text("whole")
    assert [path.name for path in target.iterdir()] == ["a"]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("occupied_by", ["file", "folder"])
def test_occupied_directory_is_refused_untouched(tmp_path: Path, occupied_by: str) -> None:
    target = tmp_path / "set"
    if occupied_by == "file":
        target.write_text("old")
    else:
        target.mkdir()
        (target / "old").write_text("old")
    with pytest.raises(FileExistsError, match="set: exists"), atomic_directory(target):
        pytest.fail("the block must not run")
    assert (target if occupied_by == "file" else target / "old").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 21) + 7])
def test_sha256_is_that_of_the_bytes(tmp_path: Path, size: int) -> None:
    content = bytes(index % 251 for index in range(size))
    (tmp_path / "a").write_bytes(content)
    assert sha256_of_file(tmp_path / "a") == hashlib.sha256(content).hexdigest()
