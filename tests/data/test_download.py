import errno
import hashlib
import json
import random
from collections.abc import Iterator
from http.client import HTTPResponse, IncompleteRead
from io import FileIO
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from nucsam_monai.data.download import Patience, download
from nucsam_monai.data.https import HttpsClient
from nucsam_monai.data.partial_file import Origin, PartialFile
from nucsam_monai.utils.errors import ConfigurationError, DatasetError
from tests.data.file_server import HOST, FileServer, serve

CONTENT = random.Random(42).randbytes((1 << 20) + 12_345)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
IMPATIENT = Patience(attempts=3, first_wait_s=0.0, timeout_s=5.0)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("no_proxy", HOST)
    with serve(CONTENT) as files:
        yield files


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "downloads" / "file.zip"


def fetch(server: FileServer, target: Path, sha256: str = DIGEST, max_bytes: int = len(CONTENT)) -> bool:
    return download(
        server.url, target, sha256=sha256, max_bytes=max_bytes, patience=IMPATIENT, plain_http_hosts=(HOST,)
    )


def interrupt(server: FileServer, target: Path, arrived: int) -> None:
    """Leave a download behind that broke after ``arrived`` bytes for good."""
    server.faults = [(arrived,), 503, 503]
    with pytest.raises(DatasetError, match=rf"3 attempts.*HTTP 503.*go on from {arrived:,} bytes"):
        fetch(server, target)
    assert not target.exists()
    assert target.with_name("file.zip.part").read_bytes() == CONTENT[:arrived]
    server.requests.clear()


def assert_complete(target: Path) -> None:
    assert target.read_bytes() == CONTENT
    assert [file.name for file in target.parent.iterdir()] == ["file.zip"]


def test_plain_download_then_nothing_to_do(server: FileServer, target: Path) -> None:
    assert fetch(server, target)
    assert_complete(target)
    assert "Range" not in server.requests[0]
    assert not fetch(server, target)
    assert len(server.requests) == 1


def test_size_need_not_be_stated(server: FileServer, target: Path) -> None:
    server.states_length = False
    assert fetch(server, target)
    assert_complete(target)


@pytest.mark.parametrize(
    ("validators", "sent"),
    [
        ({"ETag": '"first"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"}, '"first"'),
        (
            {"ETag": 'W/"weak"', "Last-Modified": "Mon, 01 Jan 2024 00:00:00 GMT"},
            "Mon, 01 Jan 2024 00:00:00 GMT",
        ),
    ],
)
def test_later_call_goes_on(server: FileServer, target: Path, validators: dict[str, str], sent: str) -> None:
    server.headers = validators
    interrupt(server, target, 70_000)
    assert fetch(server, target)
    assert_complete(target)
    assert [(request["Range"], request["If-Range"]) for request in server.requests] == [
        ("bytes=70000-", sent)
    ]


def test_truncated_bodies_are_completed_in_one_call(server: FileServer, target: Path) -> None:
    server.faults = [(1000,), (2000,)]
    assert fetch(server, target)
    assert_complete(target)
    assert [request.get("Range") for request in server.requests] == [None, "bytes=1000-", "bytes=3000-"]


def test_complete_part_is_only_checked(server: FileServer, target: Path) -> None:
    part = PartialFile(target)
    part.restart(Origin(server.url, '"first"', len(CONTENT)))
    part.append([CONTENT], len(CONTENT))
    assert fetch(server, target)
    assert_complete(target)
    assert server.requests == []


def test_ignored_range_starts_anew(server: FileServer, target: Path) -> None:
    interrupt(server, target, 70_000)
    server.honours_range = False
    assert fetch(server, target)
    assert_complete(target)
    assert len(server.requests) == 1


@pytest.mark.parametrize("honours_if_range", [True, False])
def test_file_that_changed_in_between_starts_anew(
    server: FileServer, target: Path, honours_if_range: bool
) -> None:
    server.content, whole = b"x" * len(CONTENT), server.content
    server.headers = {"ETag": '"older"'}
    server.faults = [(50_000,), 500, 500]
    with pytest.raises(DatasetError, match="HTTP 500"):
        fetch(server, target)
    server.content, server.headers, server.honours_if_range = whole, {"ETag": '"newer"'}, honours_if_range
    assert fetch(server, target)
    assert_complete(target)


def test_without_validator_nothing_is_resumed(server: FileServer, target: Path) -> None:
    server.headers = {}
    interrupt(server, target, 70_000)
    assert fetch(server, target)
    assert_complete(target)
    assert "Range" not in server.requests[0]


@pytest.mark.parametrize(
    "note", ["", "[]", '{"url": 1}', '{"url": "U", "validator": 3, "total_bytes": null}']
)
def test_damaged_note_starts_anew(server: FileServer, target: Path, note: str) -> None:
    interrupt(server, target, 70_000)
    target.with_name("file.zip.part.json").write_text(note.replace("U", server.url))
    assert fetch(server, target)
    assert_complete(target)
    assert "Range" not in server.requests[0]


def test_part_of_another_address_is_not_continued(server: FileServer, target: Path) -> None:
    interrupt(server, target, 70_000)
    server.url = server.url.replace("file.zip", "other.zip")
    assert fetch(server, target)
    assert_complete(target)
    assert "Range" not in server.requests[0]


def test_part_longer_than_the_file_starts_anew(server: FileServer, target: Path) -> None:
    part = PartialFile(target)
    part.restart(Origin(server.url, '"first"', None))
    part.append([CONTENT + b"more"], 2 * len(CONTENT))
    assert fetch(server, target)
    assert_complete(target)


def test_wrong_digest_leaves_nothing(server: FileServer, target: Path) -> None:
    expected = "0" * 64
    with pytest.raises(DatasetError, match=rf"sha256 {DIGEST}, expected {expected}; it was removed"):
        fetch(server, target, sha256=expected)
    assert list(target.parent.iterdir()) == []


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


@pytest.mark.parametrize("status", [403, 404])
def test_refusal_is_final(server: FileServer, target: Path, status: int) -> None:
    server.faults = [status]
    with pytest.raises(DatasetError, match=f"HTTP {status}.*pass it as --source"):
        fetch(server, target)
    assert len(server.requests) == 1
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("retry_after", "expected"),
    [
        ("0", [1, 2, 4, 8, 16, 32, 60, 60]),
        ("10", [10, 10, 10, 10, 16, 32, 60, 60]),
        ("3600", [60] * 8),
        ("Fri, 31 Dec 1999 23:59:59 GMT", [1, 2, 4, 8, 16, 32, 60, 60]),
    ],
)
def test_waits_double_or_are_as_long_as_the_server_asks(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch, retry_after: str, expected: list[float]
) -> None:
    waits: list[float] = []
    monkeypatch.setattr("nucsam_monai.data.download.time.sleep", waits.append)
    server.faults, server.retry_after = [503] * 9, retry_after
    patience = Patience(attempts=9, first_wait_s=1.0)
    with pytest.raises(DatasetError, match="9 attempts"):
        download(server.url, target, sha256=DIGEST, max_bytes=1, patience=patience, plain_http_hosts=(HOST,))
    assert waits == expected


def test_nobody_there_is_an_error_of_the_connection(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", HOST)
    with serve(b"") as files:
        url = files.url
    with pytest.raises(DatasetError, match=r"3 attempts.*no connection"):
        download(url, target, sha256=DIGEST, max_bytes=1, patience=IMPATIENT, plain_http_hosts=(HOST,))


@pytest.mark.parametrize("states_length", [True, False])
def test_longer_file_than_permitted_is_refused(server: FileServer, target: Path, states_length: bool) -> None:
    server.states_length = states_length
    with pytest.raises(DatasetError, match=r"1,000 bytes|1,000\."):
        fetch(server, target, max_bytes=1000)
    assert list(target.parent.iterdir()) == []


def test_nothing_is_read_past_the_limit(target: Path) -> None:
    part = PartialFile(target)
    part.restart(Origin("https://example.org/file.zip", "", None))
    blocks = iter([b"1234", b"5678", b"later"])
    with pytest.raises(DatasetError, match="more than the 6 bytes"):
        part.append(blocks, 6)
    assert next(blocks) == b"later"
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize("failure", [TimeoutError("timed out"), ConnectionResetError(), IncompleteRead(b"")])
def test_connection_that_breaks_in_the_body_is_tried_again(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch, failure: Exception
) -> None:
    read, failures = HTTPResponse.read, [failure]

    def failing_read(response: HTTPResponse, amount: int | None = None) -> bytes:
        if response.length and response.length < len(CONTENT) and failures:
            raise failures.pop()
        return read(response, amount)

    monkeypatch.setattr(HTTPResponse, "read", failing_read)
    assert fetch(server, target)
    assert_complete(target)
    assert [request.get("Range") for request in server.requests] == [None, f"bytes={1 << 20}-"]


def test_plain_http_is_refused(server: FileServer, target: Path) -> None:
    with pytest.raises(DatasetError, match="not an https address"):
        download(server.url, target, sha256=DIGEST, max_bytes=len(CONTENT))
    assert server.requests == []


@pytest.mark.parametrize(
    "address", ["http://localhost:{port}/file.zip", "ftp://127.0.0.1/file.zip", "file:///etc/hosts"]
)
def test_redirect_away_from_https_is_refused(server: FileServer, target: Path, address: str) -> None:
    server.faults = [address.format(port=urlsplit(server.url).port)]
    with pytest.raises(DatasetError, match=r"not an https address|HTTP 302"):
        fetch(server, target)
    assert len(server.requests) == 1
    assert not target.exists()


def test_permitted_redirect_keeps_the_range(server: FileServer, target: Path) -> None:
    interrupt(server, target, 70_000)
    server.faults = [server.url.replace("file.zip", "elsewhere.zip")]
    assert fetch(server, target)
    assert_complete(target)
    assert [request["Range"] for request in server.requests] == ["bytes=70000-"] * 2


def test_full_disk_keeps_what_arrived(
    server: FileServer, target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_space(_part: PartialFile, file: FileIO, block: bytes) -> None:
        file.write(block[:100])
        raise DatasetError("full")

    part = PartialFile(target)
    with monkeypatch.context() as patched:
        patched.setattr(PartialFile, "_write", no_space)
        with pytest.raises(DatasetError, match="full"):
            fetch(server, target)
    assert part.body.read_bytes() == CONTENT[:100]
    assert fetch(server, target)
    assert_complete(target)
    assert server.requests[-1]["Range"] == "bytes=100-"


def test_write_error_names_the_file_and_the_way_on() -> None:
    class FullDisk(FileIO):
        def write(self, _: object) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    with (
        FullDisk("/dev/null", "wb") as file,
        pytest.raises(DatasetError, match=r"No space left on device.*go on"),
    ):
        PartialFile(Path("file.zip"))._write(file, b"block")


def test_interrupted_by_the_user_keeps_what_arrived(target: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield CONTENT[:500]
        raise KeyboardInterrupt

    part = PartialFile(target)
    origin = Origin("https://example.org/file.zip", '"first"', len(CONTENT))
    part.restart(origin)
    with pytest.raises(KeyboardInterrupt):
        part.append(blocks(), len(CONTENT))
    assert part.body.read_bytes() == CONTENT[:500]
    assert part.origin() == origin
    assert json.loads(target.with_name("file.zip.part.json").read_text())["total_bytes"] == len(CONTENT)


def test_what_is_no_digest_is_refused(target: Path) -> None:
    with pytest.raises(ConfigurationError, match="64 lower-case"):
        download("https://example.org/file.zip", target, sha256=DIGEST.upper(), max_bytes=1)


def test_client_without_plain_hosts_cannot_speak_http() -> None:
    names = {type(handler).__name__ for handler in HttpsClient(1.0)._opener.handlers}
    assert "HTTPHandler" not in names
    assert "HTTPSHandler" in names
