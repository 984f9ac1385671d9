"""Guard the server: who may ask, for what, and how much."""

import hmac
import ipaddress
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from nucsam_monai.apps.monailabel.refusals import RequestRefusedError, check_name, json_object

logger = logging.getLogger(__name__)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Any, Receive, Send], Awaitable[None]]

_READ = frozenset({"GET", "HEAD"})
_METHODS: Mapping[str, frozenset[str]] = {
    "": _READ,
    "activelearning": frozenset({"POST"}),
    "auth": _READ,
    "batch": frozenset({"GET", "POST", "DELETE"}),
    "datastore": _READ | {"PUT", "DELETE"},
    "docs": _READ,
    "favicon.ico": _READ,
    "infer": frozenset({"POST"}),
    "info": _READ,
    "logs": _READ,
    "openapi.json": _READ,
    "session": _READ | {"PUT", "DELETE"},
    "static": _READ,
    "train": frozenset({"GET", "POST", "DELETE"}),
}
"""What is offered, by the first part of the path. Left out of MONAI Label's own: ``/model`` takes weights of
unknown origin, ``/proxy`` and ``/ohif`` serve DICOM alone, ``/reload`` starts over."""

_FILE_NAMES = ("image", "id", "label")
_PLAIN_NAMES = ("tag", "session_id", "model", "strategy")
_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")
_FORMS = ("multipart/form-data", "application/x-www-form-urlencoded")
_LARGEST_JSON = 1 << 20
_SECRET_KEYS = frozenset({"bundle_path", "local_rank"})  # MONAI Label puts them into a child's environment


@dataclass(frozen=True)
class GuardOptions:
    """Configure which requests are accepted.

    Attributes:
        token: secret that requests from other machines must send as ``Authorization: Bearer <token>``.
        max_body_bytes: largest body of a request.
        origins: pages, such as ``https://labels.example.org``, whose scripts may send requests, besides those of
            this machine.
    """

    token: str
    max_body_bytes: int
    origins: frozenset[str] = field(default_factory=frozenset)


class RequestGuard:
    """Refuse requests, as an ASGI application, before another one sees them.

    A connection from this machine to a loopback address needs no token; every other one does, whatever address
    the server is bound to. Pages of other sites in the browser of this machine count as strangers: their
    ``Origin`` and ``Host`` give them away.

    Args:
        app: the application behind.
        options: limits and the allowed origins.
    """

    def __init__(self, app: ASGIApp, options: GuardOptions) -> None:
        self.app = app
        self.options = options

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Serve or refuse one connection."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        try:
            self.check(scope)
            body = _LimitedBody(receive, self.options.max_body_bytes)
            if not _headers(scope).get("content-type", "").lower().startswith(_FORMS):
                check_json(scope["path"], await body.whole(_LARGEST_JSON))
        except RequestRefusedError as error:
            logger.warning("%s %r: %d %s", scope["method"], scope["path"], error.status, error)
            await _answer(send, error)
            return
        await self._serve(scope, body, send)

    def check(self, scope: Mapping[str, Any]) -> None:
        """Check all that is known before the body.

        Raises:
            RequestRefusedError: 401, 403, 404, 405 or 413, or 400 for a bad name.
        """
        headers = _headers(scope)
        check_caller(scope, headers, self.options)
        parts = scope["path"].strip("/").split("/")
        if parts[0] not in _METHODS:
            raise RequestRefusedError(f"/{parts[0]}: not offered by this server.", 404)
        if scope["method"] not in _METHODS[parts[0]] | {"OPTIONS"}:
            raise RequestRefusedError(f"{scope['method']} /{parts[0]}: not offered by this server.", 405)
        check_query(scope.get("query_string", b"").decode("latin-1"))
        if parts[0] == "train" and scope["method"] == "POST" and len(parts) < 2:
            raise RequestRefusedError("/train: name the model, as in /train/unsam.", 404)
        length = headers.get("content-length", "0")
        if not length.isascii() or not length.isdigit():
            raise RequestRefusedError(f"Content-Length {length[:40]!r}: expected a number of bytes.")
        if int(length) > self.options.max_body_bytes:
            raise _too_large(self.options.max_body_bytes)

    async def _serve(self, scope: Any, body: "_LimitedBody", send: Send) -> None:
        """Hand the request on; where its body turns out too large, answer that in the application's place."""
        started = False

        async def send_unless_too_large(message: Message) -> None:
            nonlocal started
            if body.exceeded and not started:
                return
            started = True
            await send(message)

        try:
            await self.app(scope, body.receive, send_unless_too_large)
        except RequestRefusedError:
            if not body.exceeded:
                raise
        if body.exceeded and not started:
            await _answer(send, _too_large(self.options.max_body_bytes))


class _LimitedBody:
    """Count the bytes of a request's body while it arrives."""

    def __init__(self, receive: Receive, max_bytes: int) -> None:
        self._receive = receive
        self._max_bytes = max_bytes
        self._count = 0
        self._replayed: list[Message] = []
        self.exceeded = False

    async def receive(self) -> Message:
        """Return the next message, as an ASGI server would.

        Raises:
            RequestRefusedError: the body is larger than allowed.
        """
        if self._replayed:
            return self._replayed.pop(0)
        message = await self._receive()
        self._count += len(message.get("body", b""))
        if self._count > self._max_bytes:
            self.exceeded = True
            raise _too_large(self._max_bytes)
        return message

    async def whole(self, max_bytes: int) -> bytes:
        """Return the body, which stays to be received.

        Raises:
            RequestRefusedError: it is larger than ``max_bytes``, or the client went away.
        """
        messages: list[Message] = []
        while not messages or messages[-1].get("more_body", False):
            messages.append(await self.receive())
            if messages[-1]["type"] == "http.disconnect":
                raise RequestRefusedError("the request ended before its body did.")
            if self._count > max_bytes:
                raise _too_large(max_bytes)
        self._replayed = messages
        return b"".join(message.get("body", b"") for message in messages)


def check_caller(scope: Mapping[str, Any], headers: Mapping[str, str], options: GuardOptions) -> None:
    """Check who asks.

    Raises:
        RequestRefusedError: 401 without the token where it is needed, 403 for a page of a foreign site.
    """
    scheme, _, given = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), options.token.encode()):
        return
    ends = (scope.get("client"), scope.get("server"))
    if not all(end is not None and is_loopback(str(end[0])) for end in ends):
        raise RequestRefusedError(
            "this server asks other machines for its token: send 'Authorization: Bearer <token>'.", 401
        )
    if not is_loopback(_host_name("//" + headers.get("host", ""))):
        raise RequestRefusedError(
            "Host: expected this machine; a page elsewhere may pretend to be it. Use http://127.0.0.1.", 403
        )
    origin = headers.get("origin")
    if origin is not None and origin not in options.origins and not is_loopback(_host_name(origin)):
        raise RequestRefusedError(
            f"Origin {origin[:100]!r}: pages of other sites may not send requests.", 403
        )


def is_loopback(host: str) -> bool:
    """Return whether a host's name or address is this machine's own."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_query(query: str) -> None:
    """Check the names in a query.

    Raises:
        RequestRefusedError: one is not plain, or an archive is to be unpacked.
    """
    for key, value in parse_qsl(query, keep_blank_values=True, errors="replace"):
        if not value:
            continue
        if key in _FILE_NAMES:
            check_name(value, key)
        elif key in _PLAIN_NAMES and not _PLAIN_NAME.fullmatch(value):
            raise RequestRefusedError(
                f"{key} {value[:100]!r}: expected letters, digits, '_', '-' and '.', at most 100."
            )
        elif key == "uncompress" and value.lower() not in ("false", "0", "no", "off"):
            raise RequestRefusedError("uncompress: archives are not unpacked here. Upload the image itself.")


def check_json(path: str, content: bytes) -> None:
    """Check a JSON body, which may be empty.

    Raises:
        RequestRefusedError: it is not an object, or has keys that only the server itself may use.
    """
    if not content.strip():
        return
    body = json_object(content, "body")
    forbidden = sorted(_SECRET_KEYS & body.keys())
    if forbidden and path.strip("/").split("/")[0] in ("train", "batch"):
        raise RequestRefusedError(f"body: '{forbidden[0]}' is not for clients. Leave it out.")


def _headers(scope: Mapping[str, Any]) -> dict[str, str]:
    pairs: Iterable[tuple[bytes, bytes]] = scope.get("headers", ())
    return {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in pairs}


def _host_name(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""


def _too_large(max_bytes: int) -> RequestRefusedError:
    return RequestRefusedError(f"the body is larger than the allowed {max_bytes} bytes.", 413)


async def _answer(send: Send, error: RequestRefusedError) -> None:
    headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    body = json.dumps({"detail": str(error)}).encode()
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
