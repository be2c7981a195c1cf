"""A few read-only pages: `/metrics`, `/healthz`, `/readyz` of a process that serves nothing else.

The operator's port. The gateway and the engine serve the same paths among their own. A page answers
GET and HEAD; anything richer belongs elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from pdserve.exposition import CONTENT_TYPE, Registry
from pdserve.http1.limits import ClientLimits
from pdserve.http1.receive import HttpRequest
from pdserve.http1.reply import Reply
from pdserve.http1.server import HttpServer

log = logging.getLogger(__name__)

PAGE_LIMITS: Final = ClientLimits(body=1 << 10, head=16 << 10, receive=10.0, memory=1 << 20)


@dataclass(frozen=True, slots=True)
class Page:
    """An answer."""

    body: str
    status: int = 200
    content_type: str = "text/plain; charset=utf-8"


PageHandler = Callable[[], Page]
Check = Callable[[], str]
"""Says what is wrong, or "" when nothing is."""


def health_pages(
    registry: Registry, *, alive: Check = lambda: "", ready: Check = lambda: ""
) -> dict[str, PageHandler]:
    """The three usual pages: metrics, and 200 or 503 by `alive` and `ready`."""
    return {
        "/metrics": lambda: Page(registry.render(), content_type=CONTENT_TYPE),
        "/healthz": lambda: _verdict(alive()),
        "/readyz": lambda: _verdict(ready()),
    }


def _verdict(problem: str) -> Page:
    return Page(f"{problem}\n", 503) if problem else Page("ok\n")


def page_server(pages: Mapping[str, PageHandler]) -> HttpServer:
    """A server of these pages, by path; the caller starts and stops it."""

    async def answer(request: HttpRequest, reply: Reply) -> None:
        page = _page(pages, request)
        reply.send(page.status, page.body.encode(), page.content_type)

    return HttpServer(answer, PAGE_LIMITS, _report, keeps=lambda path: 0)


def _page(pages: Mapping[str, PageHandler], request: HttpRequest) -> Page:
    if request.method not in ("GET", "HEAD"):
        return Page("only GET and HEAD\n", 405)
    handler = pages.get(request.path)
    if handler is None:
        return Page(f"no such page; there are {', '.join(sorted(pages))}\n", 404)
    try:
        return handler()
    except Exception:
        log.exception("Page %s failed", request.path)
        return Page("internal error\n", 500)


def _report(error: Exception) -> None:
    log.error("A page failed", exc_info=error)
