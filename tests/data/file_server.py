"""A server on the loopback interface that holds one file and misbehaves as it is told."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

HOST = "127.0.0.1"


class FileServer:
    """Holds ``content`` under every path.

    Attributes:
        content: the file.
        states_length: sends ``Content-Length``.
        faults: what the next answers do instead, one per request: a status, a redirect's address, or the number
            of body bytes after which the connection ends.
        requests: headers of the requests so far.
    """

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.states_length = True
        self.faults: list[int | str | tuple[int]] = []
        self.requests: list[dict[str, str]] = []
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        self.requests.append(dict(handler.headers.items()))
        fault = self.faults.pop(0) if self.faults else None
        if isinstance(fault, str):
            self._send(handler, 302, {"Location": fault}, b"")
        elif isinstance(fault, int):
            self._send(handler, fault, {"Content-Length": "0"}, b"")
        else:
            self._send_file(handler, fault[0] if fault else None)

    def _send_file(self, handler: BaseHTTPRequestHandler, cut: int | None) -> None:
        headers = {"Content-Length": str(len(self.content))} if self.states_length else {}
        self._send(handler, 200, headers, self.content[:cut])

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
