"""A real HTTP server with weights, which may cut, stall, redirect, refuse or lie on demand."""

from __future__ import annotations

import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Reply:
    """What one request is answered with."""

    body: bytes = b""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    stall: int | None = None
    """Send so many bytes, and then none until the client goes."""
    trickle: float | None = None
    """Seconds between single bytes."""
    chunked: bool = False
    ranges: bool = True
    """Whether `Range` is honoured."""
    tag: str = '"1"'


@dataclass(frozen=True)
class Asked:
    """One request as it came."""

    path: str
    query: str
    authorization: str | None
    range: str | None


Script = Callable[[Asked], Reply]


@dataclass
class WeightsServer:
    """Where it listens, and what it was asked."""

    url: str
    asked: list[Asked] = field(default_factory=list)


@contextmanager
def serving(script: Script, tls: ssl.SSLContext | None = None) -> Iterator[WeightsServer]:
    """A server that answers by `script` inside the block."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path, _, query = self.path.partition("?")
            headers = self.headers
            asked = Asked(path, query, headers.get("Authorization"), headers.get("Range"))
            found.asked.append(asked)
            reply = script(asked)
            start = _start(reply, asked, headers.get("If-Range"))
            body = reply.body[start:]
            self.close_connection = True
            self.send_response(206 if start else reply.status)
            if start:
                whole = len(reply.body)
                self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("ETag", reply.tag)
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
                body = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n"
            elif "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self._send(reply, body)

        def _send(self, reply: Reply, body: bytes) -> None:
            try:
                if reply.trickle is not None:
                    for number in range(len(body)):
                        self.wfile.write(body[number : number + 1])
                        self.wfile.flush()
                        if over.wait(reply.trickle):
                            return
                    return
                end = reply.cut if reply.cut is not None else reply.stall
                self.wfile.write(body[:end])
                self.wfile.flush()
                if reply.stall is not None:
                    over.wait(30)
            except OSError:
                return  # the client went

        def log_message(self, *_args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    if tls is not None:
        server.socket = tls.wrap_socket(server.socket, server_side=True)
    scheme = "http" if tls is None else "https"
    found = WeightsServer(f"{scheme}://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _start(reply: Reply, asked: Asked, if_range: str | None) -> int:
    if not asked.range or not reply.ranges or reply.status != 200:
        return 0
    if if_range is not None and if_range != reply.tag:
        return 0
    start = int(asked.range.removeprefix("bytes=").rstrip("-"))
    return start if start < len(reply.body) else 0


def in_turn(*replies: Reply) -> Script:
    """One reply after the other; the last one stays."""
    left = list(replies)
    return lambda _asked: left.pop(0) if len(left) > 1 else left[0]
