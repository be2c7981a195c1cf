"""HTTP to a real API server on the official client's `kubernetes.aio.ApiClient`.

From the library: configuration, TLS, tokens and their refresh, the connection pool. Bodies stay
raw JSON: its typed models cost seven times the CPU (docs/decisions). Neighbours: `client` (what
is asked), `connect` (where and as whom).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from urllib.parse import urlencode

import aiohttp
import orjson
from kubernetes.aio.client.api_client import ApiClient

from pdserve.exposition import Registry
from pdserve.http1.collector import collector_paused
from pdserve.kube.deep import without_depths
from pdserve.kube.errors import SILENT, UNREACHABLE, UNREADABLE, KubeError
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import Object

INACTIVITY_SECONDS = 90.0
"""A watch silent for this long is dead: the server sends a bookmark about every 60 s."""
CONNECT_SECONDS = 10.0

_HEADERS = {
    "Accept": "application/json",
    # Inside a cluster the network is cheap: gzip would cost both sides more CPU than the JSON.
    "Accept-Encoding": "identity",
}
_METHODS = {
    "get": "GET", "list": "GET", "watch": "GET", "create": "POST",
    "update": "PUT", "patch": "PATCH", "delete": "DELETE",
}  # fmt: skip
_PATCH_TYPES = {
    "json": "application/json-patch+json",
    "merge": "application/merge-patch+json",
    "strategic": "application/strategic-merge-patch+json",
    "apply": "application/apply-patch+yaml",
}


async def refuse_redirects(
    request: aiohttp.ClientRequest, handler: aiohttp.ClientHandlerType
) -> aiohttp.ClientResponse:
    """A client middleware: an API server redirects no request, so a redirect is not followed.

    Raises:
        aiohttp.ClientError: the answer is a redirection.
    """
    response = await handler(request)
    if 300 <= response.status < 400:
        response.close()
        raise aiohttp.ClientError(f"a redirection (HTTP {response.status}) is not followed")
    return response


class HttpTransport:
    """`client.KubeTransport` over HTTP(S). One per process; closes with `close`."""

    def __init__(self, api: ApiClient, registry: Registry) -> None:
        self._api = api
        self._requests = registry.counter(
            "rest_client_requests_total",
            "Requests to the API server by status code (<error> when no answer came) and method.",
            ("code", "method"),
        )
        self._seconds = registry.histogram(
            "rest_client_request_duration_seconds",
            "Time until the answer was read, by verb. Watches are not included.",
            ("verb",),
        )

    async def send(self, request: KubeRequest) -> Object:
        """Send one request; the whole answer within `request.timeout`."""
        started = time.monotonic()
        limits = aiohttp.ClientTimeout(total=request.timeout, sock_connect=CONNECT_SECONDS)
        try:
            response = await self._open(request, limits)
            async with response:
                body = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(request, error) from error
        self._seconds.labels(request.verb).observe(time.monotonic() - started)
        if response.status >= 400:
            raise _refused(response, body)
        return await read_object(body)

    async def stream(self, request: KubeRequest) -> AsyncIterator[Object]:
        """A watch: one JSON document per line, however the lines are cut into packets."""
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=INACTIVITY_SECONDS
        )
        try:
            response = await self._open(request, limits)
            async with response:
                if response.status >= 400:
                    raise _refused(response, await response.read())
                async for line in _lines(response.content):
                    yield await read_object(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._unreachable(request, error) from error

    async def close(self) -> None:
        """Close the connection pool."""
        await self._api.close()

    async def _open(
        self, request: KubeRequest, limits: aiohttp.ClientTimeout
    ) -> aiohttp.ClientResponse:
        headers: dict[str, str] = {**_HEADERS, **self._api.default_headers}
        if request.patch is not None:
            headers["Content-Type"] = _PATCH_TYPES[request.patch]
        await self._api.update_params_for_auth(
            headers, None, ["BearerToken"], None, None, None, request_auth=None
        )
        path = request.resource.path(request.namespace, request.name, request.subresource)
        url = self._api.configuration.host + path
        if request.query:
            url += "?" + urlencode(request.query)
        method = _METHODS[request.verb]
        answer = await self._api.rest_client.request(
            method, url, headers=headers, body=request.body, _request_timeout=limits
        )
        response: aiohttp.ClientResponse = answer.response
        self._requests.labels(str(response.status), method).inc()
        return response

    def _unreachable(self, request: KubeRequest, error: Exception) -> KubeError:
        self._requests.labels("<error>", _METHODS[request.verb]).inc()
        if request.verb == "watch" and isinstance(error, aiohttp.SocketTimeoutError):
            message = f"watch of {request.resource.plural} was silent for {INACTIVITY_SECONDS:g} s"
            return KubeError(0, SILENT, message)
        if isinstance(error, TimeoutError):
            message = f"no answer to {request.verb} {request.resource.plural} in time"
        else:
            message = f"{request.verb} {request.resource.plural}: {error or type(error).__name__}"
        return KubeError(0, UNREACHABLE, message)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines; a last one without its newline was cut off and is dropped."""
    rest = b""
    while chunk := await content.readany():
        if b"\n" not in chunk:
            rest += chunk
            continue
        *complete, tail = chunk.split(b"\n")
        complete[0] = rest + complete[0]
        rest = tail
        for line in complete:
            if line:
                yield line


async def read_object(body: bytes) -> Object:
    """The object that an answer holds, without what is nested too deeply.

    Raises:
        KubeError: it is not JSON, or no object.
    """
    try:
        value = _parsed(body)
    except orjson.JSONDecodeError:
        try:
            value = _parsed(await asyncio.to_thread(without_depths, body))
        except orjson.JSONDecodeError as error:
            raise KubeError(0, UNREADABLE, f"the answer is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise KubeError(0, UNREADABLE, f"the answer is a {type(value).__name__}, not an object")
    return value


def _parsed(body: bytes) -> object:
    with collector_paused(len(body)):
        return orjson.loads(body)


def _refused(response: aiohttp.ClientResponse, body: bytes) -> KubeError:
    retry_after = _seconds(response.headers)
    try:
        status: object = orjson.loads(body)
    except orjson.JSONDecodeError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return KubeError.from_status(response.status, status, retry_after=retry_after)
    # A proxy in between, or an early 401/429: plain text.
    text = body.decode("utf-8", "replace").strip()[:200]
    reason = (response.reason or "Unknown").replace(" ", "")
    return KubeError(response.status, reason, text or reason, retry_after=retry_after)


def _seconds(headers: Mapping[str, str]) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if value.isascii() and value.isdecimal() and len(value) < 10 else None
