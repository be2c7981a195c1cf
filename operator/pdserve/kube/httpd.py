"""A few read-only HTTP pages on asyncio alone: `/metrics`, `/healthz`, `/readyz`.

For processes without a web server of their own (the operator); the gateway and the engines serve
the same paths themselves. It answers GET and HEAD, closes each connection after one answer, and
bounds size and time of a request; anything richer belongs elsewhere.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass

from pdserve.exposition import CONTENT_TYPE, Registry
from pdserve.http.listen import listening

logger = logging.getLogger(__name__)

MAX_HEAD = 16 * 1024
REQUEST_SECONDS = 10.0
_REASONS = {
    200: "OK", 400: "Bad Request", 404: "Not Found", 405: "Method Not Allowed",
    500: "Internal Server Error", 503: "Service Unavailable",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


Handler = Callable[[], Page]
Check = Callable[[], str]
"""Says what is wrong, or "" when nothing is."""


def health_pages(
    registry: Registry, *, alive: Check = lambda: "", ready: Check = lambda: ""
) -> dict[str, Handler]:
    """The three usual pages: metrics, and 200 or 503 by `alive` and `ready`."""
    return {
        "/metrics": lambda: Page(registry.render(), content_type=CONTENT_TYPE),
        "/healthz": lambda: _verdict(alive()),
        "/readyz": lambda: _verdict(ready()),
    }


def _verdict(problem: str) -> Page:
    return Page(f"{problem}\n", 503) if problem else Page("ok\n")


async def serve(pages: Mapping[str, Handler], host: str, port: int) -> asyncio.Server:
    """Listen; the caller closes the server. `port` 0 takes a free one (see its sockets)."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(REQUEST_SECONDS):
                await _answer(pages, reader, writer)
        except (OSError, TimeoutError, EOFError):
            pass  # the client went, or dawdled
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    return await asyncio.start_server(connected, limit=MAX_HEAD, **listening(host, port))


async def _answer(
    pages: Mapping[str, Handler], reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> None:
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.LimitOverrunError:
        page, method = Page("request head too large\n", 400), "GET"
    else:
        method, page = _dispatch(pages, head)
    body = page.body.encode()
    lines = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}",
        f"Content-Type: {page.content_type}",
        f"Content-Length: {len(body)}",
        "Connection: close",
    )
    writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
    if method != "HEAD":
        writer.write(body)
    await writer.drain()


def _dispatch(pages: Mapping[str, Handler], head: bytes) -> tuple[str, Page]:
    parts = head.split(b"\r\n", 1)[0].decode("latin-1").split(" ")
    if len(parts) != 3 or not parts[2].startswith("HTTP/1."):
        return "GET", Page("not an HTTP/1 request\n", 400)
    method, target, _ = parts
    if method not in ("GET", "HEAD"):
        return method, Page("only GET and HEAD\n", 405)
    handler = pages.get(target.partition("?")[0])
    if handler is None:
        return method, Page(f"no such page; there are {', '.join(sorted(pages))}\n", 404)
    try:
        return method, handler()
    except Exception:
        logger.exception("Page %s failed", target)
        return method, Page("internal error\n", 500)
