"""Requests over https: no other scheme, not by a redirect either, and errors told apart by what helps."""

import http.client
import ssl
import urllib.request
from collections.abc import Collection, Mapping
from http.client import HTTPMessage, HTTPResponse
from typing import IO
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit

from nucsam_monai.utils.errors import DatasetError

RANGE_NOT_SATISFIABLE = 416
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_USER_AGENT = "nucsam-monai"


class TransientTransferError(Exception):
    """A transfer failed in a way that another attempt may get past.

    Attributes:
        wait_s: seconds that the server asks to wait, or None.
    """

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


class RangeNotSatisfiableError(TransientTransferError):
    """The server has no bytes where the request wants to go on."""


class HttpsClient:
    """Sends GET requests over https.

    Proxies are taken from the environment, as ``urllib`` does.

    Args:
        timeout_s: seconds without an answer or a byte after which a connection counts as broken.
        plain_http_hosts: hosts that may be asked without encryption, such as a server on ``127.0.0.1``.
    """

    def __init__(self, timeout_s: float, plain_http_hosts: Collection[str] = ()) -> None:
        self._timeout_s = timeout_s
        self._plain_http_hosts = frozenset(plain_http_hosts)
        self._opener = urllib.request.OpenerDirector()
        handlers = [
            urllib.request.ProxyHandler(),
            urllib.request.HTTPSHandler(),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPErrorProcessor(),
            _CheckedRedirects(self._plain_http_hosts),
        ]
        if self._plain_http_hosts:
            handlers.append(urllib.request.HTTPHandler())
        for handler in handlers:
            self._opener.add_handler(handler)

    def get(self, url: str, headers: Mapping[str, str]) -> HTTPResponse:
        """Return the answer with its body still to be read.

        Args:
            url: what to get.
            headers: headers of the request.

        Raises:
            DatasetError: the address is not https, leads away from https, or the server refuses it for good.
            TransientTransferError: no connection, or an answer that says to come again.
        """
        _check_scheme(url, self._plain_http_hosts)
        request = urllib.request.Request(url, headers={"User-Agent": _USER_AGENT, **headers})  # noqa: S310 - checked
        try:
            return self._opener.open(request, timeout=self._timeout_s)
        except HTTPError as error:
            with error:
                raise _status_error(url, error) from error
        except URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise DatasetError(
                    f"{url}: the server's certificate is not valid ({error.reason}). Check the clock and the "
                    "certificates of this machine."
                ) from error
            raise TransientTransferError(f"no connection ({error.reason})") from error
        except (OSError, http.client.HTTPException) as error:
            raise TransientTransferError(f"the connection broke ({error!r})") from error


class _CheckedRedirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects as long as they stay encrypted; ``Range`` and ``If-Range`` go along."""

    def __init__(self, plain_http_hosts: frozenset[str]) -> None:
        self._plain_http_hosts = plain_http_hosts

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        try:
            _check_scheme(newurl, self._plain_http_hosts)
        except DatasetError:
            fp.close()
            raise
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _check_scheme(url: str, plain_http_hosts: frozenset[str]) -> None:
    parts = urlsplit(url)
    if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in plain_http_hosts):
        raise DatasetError(f"{url}: not an https address, so nothing is downloaded from there.")


def _status_error(url: str, error: HTTPError) -> Exception:
    said = f"HTTP {error.code} {error.reason}"
    if error.code == RANGE_NOT_SATISFIABLE:
        return RangeNotSatisfiableError(said)
    if error.code in _TRANSIENT_STATUS:
        wait = error.headers.get("Retry-After", "")
        return TransientTransferError(said, float(wait) if wait.isascii() and wait.isdigit() else None)
    return DatasetError(
        f"{url}: the server answered {said}. Get the file with a browser and pass it as --source."
    )
