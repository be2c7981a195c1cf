"""A session of requests that bounds what an answer costs: time, bytes, values, other threads' time.

The process at the configured address is not trusted: its answers cannot redirect the operator, and
their time and memory are bounded. Neighbour: `prometheus` asks and reads.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ProtocolError
from urllib3.response import HTTPResponse
from urllib3.util.retry import Retry

from pdserve.http1.collector import collector_paused

MAX_ANSWER = 16 << 20
"""Bytes of one query's answer. A row of 10,000 pods takes about 250."""
MAX_VALUES = 120_000
"""Objects and lists in one query's answer; a row has three, and a pod one row."""
ANSWER_SECONDS = 30.0
"""Seconds for the head of one query's answer, and again for its body."""

_parsing = threading.Lock()
"""A parser holds the interpreter until it returns. One at a time lets the event loop run between
two of them."""


class BoundedSession(requests.Session):
    """Follows no redirection, accepts no encoding, reads a bounded answer within its time."""

    def __init__(self) -> None:
        super().__init__()
        self.headers["Accept-Encoding"] = "identity"
        self.read: Callable[[object], object] = lambda result: result
        """What to make of a query's result before it is returned."""

    def bound(self, url: str) -> None:
        """Give the heads of answers from `url` a deadline, whatever was mounted there before."""
        self.mount(url, _Adapter(max_retries=Retry(total=0)))

    def send(self, request: requests.PreparedRequest, **settings: object) -> requests.Response:
        """Send as the library does, and read the whole answer within the bounds of this module.

        Raises:
            RequestException: the answer is too large, too slow, or encoded.
        """
        response = super().send(request, **{**settings, "stream": True, "allow_redirects": False})
        deadline = time.monotonic() + ANSWER_SECONDS
        encoding = response.headers.get("Content-Encoding", "identity").strip().lower()
        if encoding not in ("", "identity"):
            response.close()
            raise requests.RequestException(f"the answer is encoded as {encoding[:40]!r}")
        body = bytearray()
        # What has come so far, and no wait for more: a server that drips holds no thread for ever.
        while part := response.raw.read1(min(65_536, MAX_ANSWER + 1 - len(body))):
            body += part
            if time.monotonic() > deadline:
                response.close()
                raise requests.RequestException(f"not answered within {ANSWER_SECONDS:g} s")
        if len(body) > MAX_ANSWER:
            response.close()
            raise requests.RequestException(f"an answer of more than {MAX_ANSWER} bytes")
        if body.count(b"{") + body.count(b"[") > MAX_VALUES:
            raise requests.RequestException(f"an answer of more than {MAX_VALUES} values")
        return _Answer(response, bytes(body), self.read)


class _Answer(requests.Response):
    """A response whose body was read, and that is parsed without harm to other threads."""

    def __init__(
        self, response: requests.Response, body: bytes, read: Callable[[object], object]
    ) -> None:
        super().__init__()
        self.__dict__.update(response.__dict__)
        self._content = body
        self._read = read

    def json(self, **_settings: object) -> object:
        """The value, with what `read` made of the query's result in its place.

        Of a large answer nothing but that outlives this call: a garbage collection that meets all
        of it stops every thread for longer than the parsing takes.

        Raises:
            ValueError: it is no JSON, or `read` says so.
            KeyError, TypeError: it holds no result.
        """
        with _parsing, collector_paused(len(self.content)):
            return {"data": {"result": self._read(json.loads(self.content)["data"]["result"])}}


class _Timed:
    """Of a connection: ends it when the head of an answer does not come in time.

    The library's timeouts are of single reads: a server that sends a byte now and then meets them
    for ever.
    """

    sock: socket.socket | None

    def timed(self, read_head: Callable[[], HTTPResponse]) -> HTTPResponse:
        """What `read_head` returns; raises ProtocolError when the head is late."""
        late = threading.Event()

        def cut() -> None:
            late.set()
            with suppress(OSError):
                if self.sock is not None:
                    self.sock.shutdown(socket.SHUT_RDWR)

        timer = threading.Timer(ANSWER_SECONDS, cut)
        timer.daemon = True
        timer.start()
        try:
            # Of a connection that was cut, what came before may look like a whole head.
            return read_head()
        finally:
            timer.cancel()
            if late.is_set():
                raise ProtocolError(f"no head of an answer within {ANSWER_SECONDS:g} s")


class _TimedHttp(HTTPConnection, _Timed):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        """As the library's, in time."""
        return self.timed(super().getresponse)


class _TimedHttps(HTTPSConnection, _Timed):
    def getresponse(self) -> HTTPResponse:  # type: ignore[override]  # as urllib3's own
        """As the library's, in time."""
        return self.timed(super().getresponse)


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _TimedHttp


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _TimedHttps


class _Adapter(HTTPAdapter):
    def init_poolmanager(self, *args: Any, **settings: Any) -> None:
        """As the library's, with connections that bound the time of a head."""
        super().init_poolmanager(*args, **settings)
        self.poolmanager.pool_classes_by_scheme = {"http": _HttpPool, "https": _HttpsPool}
