"""The health and metrics pages over a real socket on loopback."""

from __future__ import annotations

import asyncio
import subprocess
import sys

import pytest

from pdserve.exposition import Registry
from pdserve.http1.pages import PAGE_LIMITS, Page, health_pages, page_server

METRICS = "# HELP a_total A.\n# TYPE a_total counter\na_total 1\n"


async def ask(request: bytes, problem: str = "") -> tuple[str, str]:
    registry = Registry()
    registry.counter("a_total", "A.").inc()

    def broken() -> Page:
        raise RuntimeError("a defect")

    server = page_server(health_pages(registry, ready=lambda: problem) | {"/broken": broken})
    port = await server.start("127.0.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    answer = (await reader.read()).decode()
    writer.close()
    await server.stop(0.0)
    head, _, body = answer.partition("\r\n\r\n")
    return head, body


@pytest.mark.parametrize(
    ("request_line", "status", "body"),
    [
        (
            "GET /metrics HTTP/1.1",
            "200 OK",
            "# HELP a_total A.\n# TYPE a_total counter\na_total 1\n",
        ),
        ("GET /metrics?x=1 HTTP/1.0", "200 OK", None),
        ("GET /healthz HTTP/1.1", "200 OK", "ok\n"),
        ("HEAD /healthz HTTP/1.1", "200 OK", ""),
        ("GET /nothing HTTP/1.1", "404 Not Found", None),
        ("POST /healthz HTTP/1.1", "405 Method Not Allowed", None),
        ("GET /broken HTTP/1.1", "500 Internal Server Error", "internal error\n"),
        ("nonsense", "400 Bad Request", None),
        ("GET /healthz SPDY/3", "400 Bad Request", None),
    ],
)
async def test_pages(request_line: str, status: str, body: str | None) -> None:
    head, got = await ask(f"{request_line}\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    assert head.startswith(f"HTTP/1.1 {status}\r\n")
    if body is not None:
        assert got == body


async def test_metrics_have_the_exposition_content_type() -> None:
    head, _ = await ask(b"GET /metrics HTTP/1.1\r\nConnection: close\r\n\r\n")
    assert "content-type: text/plain; version=0.0.4; charset=utf-8" in head


async def test_readiness_says_what_is_missing() -> None:
    head, body = await ask(
        b"GET /readyz HTTP/1.1\r\nConnection: close\r\n\r\n", problem="pods: not listed yet"
    )
    assert head.startswith("HTTP/1.1 503 ")
    assert body == "pods: not listed yet\n"


async def test_an_oversized_head_is_refused() -> None:
    head, _ = await ask(b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * PAGE_LIMITS.head)
    assert head.startswith("HTTP/1.1 431 ")


def test_serving_pages_loads_no_kubernetes_client() -> None:
    """So that a process without one can serve them, and starts fast."""
    code = (
        "import sys, pdserve.http1.pages\n"
        "heavy = {'kubernetes', 'kopf', 'aiohttp', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(str(heavy) if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
