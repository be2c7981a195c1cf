"""Ends a try that hardly goes on, wherever its server is slow: in a head, a body, or behind it.

A timeout of the socket bounds one wait and no more: a server that sends a byte now and then, or one
interim head after the other, passes it without end. So a thread looks at what came.
Neighbour: `transfer` has the tries.
"""

from __future__ import annotations

import http.client
import socket
import ssl
import threading
import time
import urllib.request
from collections.abc import Callable
from contextlib import suppress
from typing import Final

Say = Callable[[str], None]
Connected = Callable[[socket.socket], None]
SLOWEST: Final = 1024
"""Bytes a second."""
SAY_SECONDS: Final = 10.0


class SpeedWatch:
    """Watches one try while it is a context; connections of it are `connected`.

    `late`: why it was ended; empty: it was not.
    """

    def __init__(self, seconds: float, say: Say) -> None:
        """`seconds`: over which a try must have come to `SLOWEST` bytes a second."""
        self._seconds, self._say = seconds, say
        self._socket: socket.socket | None = None
        self._bytes = 0
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pdserve-watch", daemon=True)
        self._said = time.monotonic()
        self.late = ""

    def __enter__(self) -> SpeedWatch:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def connected(self, connection: socket.socket) -> None:
        """Watch this connection from now on; what was before it counts no more."""
        with self._lock:
            self._socket, self._bytes = connection, 0

    def came(self, count: int, size: int, whole: int | None) -> None:
        """Count `count` bytes, and say now and then that `size` of `whole` are there."""
        with self._lock:
            self._bytes += count
        now = time.monotonic()
        if now - self._said >= SAY_SECONDS:
            self._said = now
            self._say(f"{size / 1e6:.0f}{'' if whole is None else f' of {whole / 1e6:.0f}'} MB")

    def _run(self) -> None:
        watched: socket.socket | None = None
        while not self._over.wait(self._seconds):
            with self._lock:
                current, count, self._bytes = self._socket, self._bytes, 0
            slow = count < SLOWEST * self._seconds
            if current is not None and current is watched and slow:
                self.late = f"only {count} bytes in {self._seconds:g} s"
                with suppress(OSError):
                    # Below TLS: another thread reads from it.
                    socket.socket.shutdown(current, socket.SHUT_RDWR)
                return
            watched = current


class WatchedHttp(urllib.request.HTTPHandler):
    """Reports each http connection once it stands."""

    def __init__(self, connected: Connected) -> None:
        super().__init__()
        self._connected = connected

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """urllib: ask."""
        return self.do_open(self._made, req)

    def _made(
        self, host: str, /, *, timeout: float | None = None, **_more: object
    ) -> http.client.HTTPConnection:
        return _Plain(self._connected, host, timeout)


class WatchedHttps(urllib.request.HTTPSHandler):
    """Reports each https connection once it stands."""

    def __init__(self, connected: Connected, tls: ssl.SSLContext | None) -> None:
        """`tls`: see `ServerAccess`."""
        super().__init__()
        self._connected, self._tls = connected, tls

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """urllib: ask."""
        return self.do_open(self._made, req)

    def _made(
        self, host: str, /, *, timeout: float | None = None, **_more: object
    ) -> http.client.HTTPConnection:
        return _Secure(self._connected, host, timeout, self._tls)


class _Plain(http.client.HTTPConnection):
    def __init__(self, connected: Connected, host: str, timeout: float | None) -> None:
        super().__init__(host, timeout=timeout)
        self._connected = connected

    def connect(self) -> None:
        super().connect()
        self._connected(self.sock)


class _Secure(http.client.HTTPSConnection):
    def __init__(
        self, connected: Connected, host: str, timeout: float | None, tls: ssl.SSLContext | None
    ) -> None:
        super().__init__(host, timeout=timeout, context=tls)
        self._connected = connected

    def connect(self) -> None:
        super().connect()
        self._connected(self.sock)
