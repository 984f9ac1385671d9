"""Hostile requests against the guard, without MONAI Label."""

import asyncio
import json
from collections.abc import Mapping
from typing import Any

import pytest

from nucsam_monai.apps.monailabel.guard import GuardOptions, RequestGuard

TOKEN = "a-token-of-the-tests"
HERE, THERE = ("127.0.0.1", 50000), ("192.0.2.7", 50000)


class Application:
    """Reads the body and answers 200 with it."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"{}"})


def ask(
    path: str,
    method: str = "GET",
    *,
    query: str = "",
    headers: Mapping[str, str] | None = None,
    body: tuple[bytes, ...] = (b"",),
    client: tuple[str, int] = HERE,
    server: tuple[str, int] = ("127.0.0.1", 8000),
    limit: int = 1000,
    kind: str = "http",
    origins: frozenset[str] = frozenset(),
) -> tuple[int, str, Application]:
    """Return status, detail and the application behind the guard."""
    sent: list[dict[str, Any]] = []
    messages = [
        {"type": "http.request", "body": part, "more_body": number < len(body) - 1}
        for number, part in enumerate(body)
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": kind,
        "method": method,
        "path": path,
        "query_string": query.encode(),
        "headers": [
            (name.lower().encode(), value.encode())
            for name, value in {"host": "127.0.0.1:8000", **(headers or {})}.items()
        ],
        "client": client,
        "server": server,
    }
    application = Application()
    guard = RequestGuard(application, GuardOptions(TOKEN, limit, origins))
    asyncio.run(guard(scope, receive, send))
    if kind != "http":
        return sent[0]["code"], "", application
    text = sent[1]["body"].decode()
    return sent[0]["status"], json.loads(text).get("detail", ""), application


def test_a_request_of_this_machine_passes() -> None:
    assert ask("/info/")[0] == 200
    assert ask("/infer/unsam", "POST", query="image=slide%201.v2")[0] == 200
    assert ask("/info/", headers={"host": "localhost:8000", "origin": "http://localhost:3000"})[0] == 200
    assert ask("/info/", headers={"host": "[::1]:8000"}, client=("::1", 1), server=("::1", 8000))[0] == 200


@pytest.mark.parametrize(
    ("client", "server"),
    [(THERE, ("192.0.2.1", 8000)), (HERE, ("192.0.2.1", 8000)), (THERE, ("127.0.0.1", 8000))],
)
def test_other_machines_need_the_token(client: tuple[str, int], server: tuple[str, int]) -> None:
    ends = {"client": client, "server": server}
    assert ask("/info/", **ends)[0] == 401
    assert ask("/info/", headers={"authorization": "Bearer wrong"}, **ends)[0] == 401
    assert ask("/info/", headers={"authorization": f"Basic {TOKEN}"}, **ends)[0] == 401
    assert ask("/info/", headers={"authorization": "Bearer Ã"}, **ends)[0] == 401
    assert ask("/info/", headers={"authorization": f"bearer {TOKEN}"}, **ends)[0] == 200


def test_a_connection_of_unknown_ends_needs_the_token() -> None:
    assert ask("/info/", client=None)[0] == 401  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1.evil.example", "http://["]
)
def test_pages_of_other_sites_are_refused(origin: str) -> None:
    status, detail, application = ask("/train/unsam", "POST", headers={"origin": origin}, body=(b"{}",))
    assert status == 403
    assert "Origin" in detail
    assert not application.bodies


def test_named_pages_are_let_through() -> None:
    page = "https://labels.example.org"
    assert ask("/info/", headers={"origin": page}, origins=frozenset({page}))[0] == 200


@pytest.mark.parametrize("host", ["evil.example:8000", "", "127.0.0.1.evil.example"])
def test_a_name_that_was_rebound_to_this_machine_is_refused(host: str) -> None:
    assert ask("/info/", headers={"host": host})[0] == 403


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PUT", "/model/unsam", 404),
        ("GET", "/proxy/dicom/x", 404),
        ("GET", "/ohif/../../etc/passwd", 404),
        ("POST", "/reload", 404),
        ("DELETE", "/infer/unsam", 405),
        ("TRACE", "/info/", 405),
        ("POST", "/train/", 404),
    ],
)
def test_what_is_not_offered_is_refused(method: str, path: str, status: int) -> None:
    assert ask(path, method)[0] == status


@pytest.mark.parametrize(
    "query",
    [
        "image=../../etc/passwd",
        "image=..%2F..%2Fetc%2Fpasswd",
        "image=/etc/passwd",
        "image=%2Fetc%2Fpasswd",
        "image=..",
        "image=.hidden",
        "image=a%00.png",
        "image=a%5C..%5Cb",
        "image=a%0Ab",
        "image=" + "x" * 300,
        "image=fine&image=../x",
        "label=../x&tag=final",
        "label=x&tag=../../x",
        "id=../datastore_v2",
        "session_id=../../x",
        "uncompress=true",
    ],
)
def test_names_that_leave_the_folder_are_refused(query: str) -> None:
    status, _, application = ask("/datastore/image", "PUT", query=query)
    assert status == 400
    assert not application.bodies


def test_a_body_is_limited_by_its_announced_length() -> None:
    status, _, application = ask("/datastore/image", "PUT", headers={"content-length": "1001"})
    assert status == 413
    assert not application.bodies
    assert ask("/datastore/image", "PUT", headers={"content-length": "-5"})[0] == 400


def test_a_body_is_limited_by_the_bytes_received() -> None:
    form = {"content-type": "multipart/form-data; boundary=x", "content-length": "10"}
    status, _, application = ask("/datastore/image", "PUT", headers=form, body=(b"a" * 600, b"b" * 600))
    assert status == 413
    assert not application.bodies
    status, _, application = ask("/datastore/image", "PUT", headers=form, body=(b"a" * 400, b"b" * 600))
    assert status == 200
    assert application.bodies == [b"a" * 400 + b"b" * 600]


@pytest.mark.parametrize("body", [b"{", b"[1]", b"\xff\xfe", b"[" * 900, b'"x"'])
def test_a_body_that_is_not_a_json_object_is_refused(body: bytes) -> None:
    assert ask("/train/unsam", "POST", headers={"content-type": "application/json"}, body=(body,))[0] == 400
    assert ask("/train/unsam", "POST", body=(body,))[0] == 400


def test_keys_that_reach_a_childs_environment_are_refused() -> None:
    body = json.dumps({"max_epochs": 1, "bundle_path": "/tmp/evil"}).encode()
    status, detail, application = ask("/train/unsam", "POST", body=(body,))
    assert status == 400
    assert "bundle_path" in detail
    assert not application.bodies


def test_a_json_body_reaches_the_application_whole() -> None:
    parts = (b'{"max_ep', b'ochs": 2}')
    assert ask("/train/unsam", "POST", body=parts)[2].bodies == [b'{"max_epochs": 2}']


def test_web_sockets_are_closed() -> None:
    assert ask("/info/", kind="websocket")[0] == 1008
