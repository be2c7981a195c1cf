"""kopf's connection to the API server: it cuts what is nested too deeply.

The API server stores templates of any depth, and kopf parses and copies them recursively: one such
object ended kopf's watcher, and with it the operator. So what lies deeper than `MOST` levels is cut
out before kopf reads it; its handlers use names alone. Neighbour: `kube.transport` does the same
for the caches, with more levels.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any, Final

import aiohttp
import kopf

from pdserve.kube.deep import without_depths

MOST: Final = 64
"""Levels. kopf needs several Python frames for each, API objects have about 30."""


def session_of(info: kopf.ConnectionInfo) -> kopf.AiohttpSession:
    """A session with these credentials, on the running event loop; the caller closes it."""
    return kopf.AiohttpSession(
        server=info.server,
        default_namespace=info.default_namespace,
        expiration=info.expiration,
        aiohttp_session=aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=info.as_ssl_context()),
            headers=info.as_http_headers(),
            proxy=info.proxy_url,
            trust_env=info.trust_env,
            response_class=ShallowResponse,
        ),
    )


class ShallowResponse(aiohttp.ClientResponse):
    """Cuts out what is nested too deeply, of a document and of each line of a stream."""

    async def start(self, connection: Any) -> aiohttp.ClientResponse:
        """As the library's."""
        await super().start(connection)
        self.content = _ShallowLines(self.content)  # type: ignore[assignment]  # stands in for it
        return self

    async def json(self, **given: Any) -> Any:
        """As the library's."""
        return await super().json(**{**given, "loads": _loads})


class _ShallowLines:
    """A `StreamReader` whose chunks are whole lines, of JSON each."""

    def __init__(self, inner: aiohttp.StreamReader) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> object:
        return getattr(self._inner, name)

    async def iter_chunked(self, size: int) -> AsyncIterator[bytes]:
        """Lines, as many as came; a last one that was cut off in mid-way is dropped."""
        rest = b""
        async for data in self._inner.iter_chunked(size):
            *lines, rest = (rest + data).split(b"\n")
            if lines:
                yield b"".join(without_depths(line, MOST) + b"\n" for line in lines)


def _loads(text: str) -> object:
    return json.loads(without_depths(text.encode(), MOST))
