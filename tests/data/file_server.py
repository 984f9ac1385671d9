"""A server on the loopback interface that holds one file and misbehaves as it is told."""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"


class FileServer:
    """Holds ``content`` under every path.

    Attributes:
        content: the file.
        headers: validators and whatever else is sent with the file.
        honours_range: answers ``Range`` with 206.
        honours_if_range: compares ``If-Range`` with its validators.
        states_length: sends ``Content-Length``.
        retry_after: what comes with an error's status.
        faults: what the next answers do instead, one per request: a status, a redirect's address, or the number
            of body bytes after which the connection ends.
        requests: headers of the requests so far.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.headers: dict[str, str] = {"ETag": '"first"'}
        self.honours_range = True
        self.honours_if_range = True
        self.states_length = True
        self.retry_after = "0"
        self.faults: list[int | str | tuple[int]] = []
        self.requests: list[dict[str, str]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(handler.headers.items()))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, str):
            self._send(handler, 302, {"Location": fault}, b"")
        elif isinstance(fault, int):
            self._send(handler, fault, {"Content-Length": "0", "Retry-After": self.retry_after}, b"")
        else:
            self._send_file(handler, fault[0] if fault else None)

    def _send_file(self, handler: BaseHTTPRequestHandler, cut: int | None) -> None:
        wanted = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        if_range = handler.headers.get("If-Range")
        same = not self.honours_if_range or if_range is None or if_range in self.headers.values()
        start = int(wanted[1]) if wanted and self.honours_range and same else 0
        total = len(self.content)
        if start and start >= total:
            self._send(handler, 416, {"Content-Range": f"bytes */{total}", "Content-Length": "0"}, b"")
            return
        body = self.content[start:]
        headers = dict(self.headers)
        if self.states_length:
            headers["Content-Length"] = str(len(body))
        if start:
            headers["Content-Range"] = f"bytes {start}-{total - 1}/{total}"
        self._send(handler, 206 if start else 200, headers, body if cut is None else body[:cut])

    @staticmethod
    def _send(handler: BaseHTTPRequestHandler, status: int, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(status)
        for name, value in headers.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


def _handler_class(answer: Callable[[BaseHTTPRequestHandler], None]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def serve(content: bytes) -> Iterator[FileServer]:
    files = FileServer(content)
    with ThreadingHTTPServer((HOST, 0), _handler_class(files.answer)) as server:
        files.url = f"http://{HOST}:{server.server_port}/file.zip"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield files
        finally:
            server.shutdown()
            thread.join()
