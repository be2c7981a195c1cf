"""A real Prometheus server and a tiny exposition server, both on loopback, for tests."""

from __future__ import annotations

import asyncio
import subprocess
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar

import yaml
from tests.support.engines import fresh_host

from localcluster import binaries

T = TypeVar("T")

PORT = 19090
"""Fixed, on an address of its own: a free port that is looked for may be gone when it is bound.
Not 9090, which a server on all addresses of this machine may have."""


class Exposition:
    """Serves `page()` to every scrape; None answers 503, as a broken target does."""

    def __init__(self, page: Callable[[], str | None], host: str = "127.0.0.1") -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                text = page()
                body = (text or "").encode()
                self.send_response(200 if text is not None else 503)
                self.send_header("Content-Type", "text/plain; version=0.0.4")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_args: Any) -> None:
                """Quiet."""

        self._server = ThreadingHTTPServer((host, 0), Handler)
        self.host, self.port = host, self._server.server_port
        Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def exposition(values: Mapping[str, float | str]) -> str:
    """Series text -> value, in the text format."""
    return "".join(f"{series} {value}\n" for series, value in values.items())


class Prometheus:
    """One server process."""

    def __init__(self, process: subprocess.Popen[bytes], host: str) -> None:
        self.process, self.host = process, host
        self.url = f"http://{host}:{PORT}"

    def ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(10)


@contextmanager
def running_prometheus(
    directory: Path, scrape_configs: list[dict[str, Any]], host: str | None = None
) -> Iterator[Prometheus]:
    """A started server with these scrape jobs, stopped at the end whatever happens.

    `host`: the address of an earlier one, to come back there.
    """
    config = directory / "prometheus.yml"
    config.write_text(yaml.safe_dump({"scrape_configs": scrape_configs}))
    host = host or fresh_host()
    with (directory / "prometheus.log").open("wb") as log:
        process = subprocess.Popen(
            [
                str(binaries.prometheus()),
                f"--config.file={config}",
                f"--storage.tsdb.path={directory / 'tsdb'}",
                f"--web.listen-address={host}:{PORT}",
            ],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    server = Prometheus(process, host)
    try:
        deadline = time.monotonic() + 30
        while not server.ready():
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError((directory / "prometheus.log").read_text()[-2000:])
            time.sleep(0.05)
        yield server
    finally:
        server.stop()


async def eventually(
    probe: Callable[[], Awaitable[T]], good: Callable[[T], bool], within: float = 60.0
) -> T:
    """The first good answer; the last answer in the error when the deadline passes."""
    deadline = time.monotonic() + within
    while True:
        answer = await probe()
        if good(answer):
            return answer
        assert time.monotonic() < deadline, f"not within {within} s, last: {answer!r:.2000}"
        await asyncio.sleep(0.1)
