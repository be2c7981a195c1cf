"""An API server as `kubectl pdserve ask` sees one: objects by path, and a proxy to gateway pods.

Real sockets and real HTTP, so that what is tested is the whole command; what the gateway says is
scripted. The real pair is in tests/cluster/test_kubectl_ask.py.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

Json = dict[str, Any]
PROXY = "/proxy/v1/"


@dataclass
class Reply:
    """A scripted reply; an iterable body is sent piece by piece, as it is produced."""

    status: int
    body: Json | Iterator[bytes] | Sequence[bytes]
    headers: Mapping[str, str] = field(default_factory=dict)
    cut: bool = False
    """End without the last chunk, as a connection that broke."""


@dataclass
class Seen:
    """A request to a pod."""

    path: str
    headers: Mapping[str, str]
    body: Json


class FakeApiServer:
    """`objects` by path; `reply` answers requests to pods; `seen` holds these."""

    def __init__(self) -> None:
        self.objects: dict[str, Json] = {}
        self.logs: dict[str, list[Json | str]] = {}
        """Logs of pods by path, line by line."""
        self.refused: dict[str, Json] = {}
        """Paths that are answered by a Status."""
        self.reply: Callable[[Seen], Reply] = lambda seen: Reply(200, events("Hello", " there"))
        self.seen: list[Seen] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def kubeconfig(self, folder: Path, namespace: str = "default", port: int = 0) -> Path:
        """A kubeconfig for it (or what is at `port`), with a token that must not reach a pod."""
        url = f"http://127.0.0.1:{port or self._server.server_address[1]}"
        config = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "c",
            "contexts": [
                {"name": "c", "context": {"cluster": "c", "user": "u", "namespace": namespace}}
            ],
            "clusters": [{"name": "c", "cluster": {"server": url}}],
            "users": [{"name": "u", "user": {"token": "user-token"}}],
        }
        path = folder / "kubeconfig"
        path.write_text(json.dumps(config))
        return path

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                """Quiet."""

            def do_GET(self) -> None:
                path = self.path.split("?")[0]
                if path in fake.refused:
                    self._whole(fake.refused[path]["code"], fake.refused[path])
                elif path in fake.logs:
                    lines = (x if isinstance(x, str) else json.dumps(x) for x in fake.logs[path])
                    data = "".join(f"{line}\n" for line in lines).encode()
                    self._head(
                        200, {"content-type": "text/plain", "content-length": f"{len(data)}"}
                    )
                    self.wfile.write(data)
                elif path in fake.objects:
                    self._whole(200, fake.objects[path])
                else:
                    self._whole(404, status(404, "NotFound", f"{path} not found"))

            def do_POST(self) -> None:
                raw = self.rfile.read(int(self.headers["content-length"]))
                headers = {k.lower(): v for k, v in self.headers.items()}
                seen = Seen(self.path, headers, json.loads(raw))
                fake.seen.append(seen)
                reply = fake.reply(seen)
                if isinstance(reply.body, dict):
                    self._whole(reply.status, reply.body, reply.headers)
                    return
                self._head(reply.status, {**reply.headers, "transfer-encoding": "chunked"})
                try:
                    for piece in reply.body:
                        self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
                    if not reply.cut:
                        self.wfile.write(b"0\r\n\r\n")
                except ConnectionError:
                    self.close_connection = True  # the client left
                self.close_connection |= reply.cut

            def _whole(self, code: int, body: Json, headers: Mapping[str, str] = {}) -> None:
                data = json.dumps(body).encode()
                self._head(
                    code,
                    {
                        **headers,
                        "content-type": "application/json",
                        "content-length": str(len(data)),
                    },
                )
                self.wfile.write(data)

            def _head(self, code: int, headers: Mapping[str, str]) -> None:
                self.send_response(code)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()

        return Handler


def status(code: int, reason: str, message: str) -> Json:
    """The API server's own refusal."""
    return {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "code": code,
        "reason": reason,
        "message": message,
    }


def event(**value: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(text: str, finish: str | None = None) -> bytes:
    """An event of a chat stream."""
    return event(choices=[{"index": 0, "delta": {"content": text}, "finish_reason": finish}])


def events(*texts: str, finish: str = "length", prompt_tokens: int = 7) -> list[bytes]:
    """A whole chat stream of these texts."""
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(texts)}
    return [
        *(delta(text) for text in texts),
        delta("", finish),
        event(choices=[], usage=usage),
        b"data: [DONE]\n\n",
    ]
