import errno
import hashlib
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from pooch import HTTPDownloader

from nucsam_monai.data import download as module
from nucsam_monai.data.download import download
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.file_server import HOST, FileServer, serve

CONTENT = random.Random(42).randbytes((1 << 20) + 12_345)
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture(autouse=True)
def loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", HOST)
    monkeypatch.setattr(module, "_PLAIN_HTTP_HOSTS", frozenset({HOST}))
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 0.0)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with serve(CONTENT) as files:
        yield files


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.zip"


def fetch(server: FileServer, target: Path, sha256: str = DIGEST, max_bytes: int = len(CONTENT)) -> bool:
    return download(server.url, target, sha256=sha256, max_bytes=max_bytes)


def assert_complete(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["file.zip"]


def assert_nothing_left(target: Path) -> None:
    assert not target.parent.exists() or list(target.parent.iterdir()) == []


def test_plain_download_then_nothing_to_do(server: FileServer, target: Path) -> None:
    assert fetch(server, target)
    assert_complete(target)
    assert not fetch(server, target)
    assert len(server.requests) == 1


def test_the_file_may_be_read_like_any_other(server: FileServer, target: Path, tmp_path: Path) -> None:
    fetch(server, target)
    (tmp_path / "other").touch()
    assert target.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_size_need_not_be_stated(server: FileServer, target: Path) -> None:
    server.states_length = False
    assert fetch(server, target)
    assert_complete(target)


def test_truncated_bodies_are_fetched_again(server: FileServer, target: Path) -> None:
    server.faults = [(1000,), (2000,)]
    assert fetch(server, target)
    assert_complete(target)
    assert len(server.requests) == 3


def test_wrong_digest_leaves_nothing(server: FileServer, target: Path) -> None:
    expected = "0" * 64
    with pytest.raises(DatasetError, match=rf"sha256 {DIGEST}, expected {expected}; it was removed"):
        fetch(server, target, sha256=expected)
    assert_nothing_left(target)
    assert len(server.requests) == 1


def test_present_file_with_another_digest_is_not_touched(server: FileServer, target: Path) -> None:
    target.parent.mkdir()
    target.write_bytes(b"mine")
    with pytest.raises(DatasetError, match="exists already with sha256"):
        fetch(server, target)
    assert target.read_bytes() == b"mine"
    assert server.requests == []


@pytest.mark.parametrize("status", [429, 500, 503])
def test_transient_status_is_tried_again(server: FileServer, target: Path, status: int) -> None:
    server.faults = [status, status]
    assert fetch(server, target)
    assert_complete(target)
    assert len(server.requests) == 3


def test_every_attempt_fails(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr(module, "_FIRST_WAIT_S", 1.0)
    monkeypatch.setattr("nucsam_monai.data.download.time.sleep", waits.append)
    server.faults = [503] * 9
    with pytest.raises(DatasetError, match=r"4 attempts.*503.*pass it as --source"):
        fetch(server, target)
    assert waits == [1, 2, 4]
    assert_nothing_left(target)


@pytest.mark.parametrize("status", [403, 404])
def test_refusal_is_final(server: FileServer, target: Path, status: int) -> None:
    server.faults = [status]
    with pytest.raises(DatasetError, match=f"HTTP {status}.*pass it as --source"):
        fetch(server, target)
    assert len(server.requests) == 1
    assert_nothing_left(target)


def test_a_missing_server_is_a_connection_error(target: Path) -> None:
    with serve(b"") as files:
        url = files.url
    with pytest.raises(DatasetError, match=r"4 attempts.*[Cc]onnection"):
        download(url, target, sha256=DIGEST, max_bytes=1)
    assert_nothing_left(target)


def test_a_file_longer_than_expected_is_refused(server: FileServer, target: Path) -> None:
    with pytest.raises(DatasetError, match=r"at most 1,000\."):
        fetch(server, target, max_bytes=1000)
    assert_nothing_left(target)


def test_plain_http_is_refused(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PLAIN_HTTP_HOSTS", frozenset())
    with pytest.raises(DatasetError, match="not an https address"):
        fetch(server, target)
    assert server.requests == []


@pytest.mark.parametrize(
    "address", ["http://localhost:{port}/file.zip", "ftp://127.0.0.1/file.zip", "file:///etc/hosts"]
)
def test_redirect_away_from_https_is_refused(server: FileServer, target: Path, address: str) -> None:
    server.faults = [address.format(port=urlsplit(server.url).port)]
    with pytest.raises(DatasetError, match="not an https address"):
        fetch(server, target)
    assert len(server.requests) == 1
    assert_nothing_left(target)


@pytest.mark.parametrize("elsewhere", ["elsewhere.zip", "/file.zip"])
def test_permitted_redirect_is_followed(server: FileServer, target: Path, elsewhere: str) -> None:
    server.faults = [elsewhere]
    assert fetch(server, target)
    assert_complete(target)


def test_a_full_disk_is_named(server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(HTTPDownloader, "__call__", no_space)
    with pytest.raises(DatasetError, match=r"file\.zip: cannot be written \(No space left on device\)"):
        fetch(server, target)
    assert_nothing_left(target)


def test_interrupted_by_the_user_leaves_nothing(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: HTTPDownloader, url: str, path: str, pooch: object) -> None:
        Path(path).write_bytes(CONTENT[:500])
        raise KeyboardInterrupt

    monkeypatch.setattr(HTTPDownloader, "__call__", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fetch(server, target)
    assert_nothing_left(target)


def test_what_is_not_a_digest_is_refused(target: Path) -> None:
    with pytest.raises(ConfigurationError, match="64 lower-case"):
        download("https://example.org/file.zip", target, sha256=DIGEST.upper(), max_bytes=1)


def test_a_missing_package_is_named_with_its_extra(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(ConfigurationError, match=r"need pooch, .* pip install 'nucsam-monai\[train\]'"):
        download(server.url, target, sha256=DIGEST, max_bytes=len(CONTENT))
    assert server.requests == []
