"""One streamed OpenAI request to a pod, by the API server's pod proxy.

The proxy needs no port-forward and no route from here to the pod, and passes event streams on as
they come (Go's ReverseProxy flushes each piece). It takes `Authorization` for itself, so that
gateways get the API key in `x-api-key`. Pods of process nodes are asked directly: the proxy refuses
their addresses.

Neighbours: `ask` words what comes out of it; `gateway.sse` and `forwarding.request.measure` define
what is measured, so that it agrees with the metrics.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from kubernetes.aio.client.api_client import ApiClient

from pdserve.cli.ask_target import GatewayPod
from pdserve.forwarding.request.measure import Timeline
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.kube.connect import api_client
from pdserve.kube.errors import UNREACHABLE, KubeError
from pdserve.kube.resource import PODS
from pdserve.terms.json import JsonMap
from pdserve.wire import names
from pdserve.wire.calls import HEADER_REQUEST_ID

CONNECT_SECONDS = 10.0
SILENCE_SECONDS = 120.0
"""A stream without a byte for longer is given up. Gateways give up before."""


@dataclass(frozen=True)
class Question:
    """A request for one of the two generating endpoints."""

    path: str
    body: JsonMap
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class AskResult:
    """What came of it. Times by this machine's clock, from the moment the request was sent."""

    gateway: str
    """The pod that answered."""
    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    timeline: Timeline
    error: JsonMap = field(default_factory=dict)
    """The OpenAI error object of a refusal, or of a stream that broke; `{}` without one."""
    usage: JsonMap = field(default_factory=dict)
    finish_reason: str = ""
    complete: bool = False
    """The stream came to its proper end."""
    seconds: float = 0.0
    """Until its last byte."""


class PodProxy:
    """Requests to pods through one API server."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api

    async def ask(
        self, namespace: str, pod: GatewayPod, question: Question, show: Callable[[str], None]
    ) -> AskResult:
        """Send `question` to a gateway pod; `show` gets each piece of text when it is there.

        Raises:
            KubeError: the API server refused (RBAC, no such pod), could not reach the pod, or
                gave no answer.
        """
        timeline = Timeline(time.perf_counter(), streamed=True)
        try:
            async with self._post(namespace, pod, question) as reply:
                headers = {k.lower(): v for k, v in reply.headers.items()}
                answer = AskResult(pod.name, reply.status, headers, timeline)
                if reply.status == 200:
                    await _stream(reply.content, answer, show)
                else:
                    answer.error = _refusal(reply.status, await reply.read())
        except BrokenPipeError:
            raise  # `show` has no reader any more; what aiohttp raises is never of this class
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if timeline.first is None:
                why = str(error) or type(error).__name__
                raise KubeError(0, UNREACHABLE, f"request to pod {pod.name}: {why}") from error
            answer.error = {"code": "connection_lost", "message": str(error) or "connection lost"}
        answer.seconds = time.perf_counter() - timeline.arrived
        return answer

    async def read(self, namespace: str, pod: GatewayPod, path: str) -> str:
        """The text of a GET to a gateway pod, for example its metrics.

        Raises:
            KubeError: the API server or the pod refused, or gave no answer.
        """
        try:
            async with self._request("GET", namespace, pod, path, {"Accept": "*/*"}) as reply:
                text = await reply.text(errors="replace")
                if reply.status != 200:
                    raise KubeError(reply.status, reply.reason or "", text[:500])
                return text
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise KubeError(0, UNREACHABLE, f"request to pod {pod.name}: {why}") from error

    def _post(
        self, namespace: str, pod: GatewayPod, question: Question
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        headers = {
            **question.headers,
            "Content-Type": "application/json",
            "Accept": "text/event-stream, application/json",
        }
        return self._request("POST", namespace, pod, question.path, headers, question.body)

    @asynccontextmanager
    async def _request(
        self, method: str, namespace: str, pod: GatewayPod, path: str,
        own: Mapping[str, str], body: JsonMap | None = None,
    ) -> AsyncIterator[aiohttp.ClientResponse]:  # fmt: skip
        """One request with headers of its `own`."""
        headers: dict[str, str] = {**self._api.default_headers, **own}
        limits = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_SECONDS, sock_read=SILENCE_SECONDS
        )
        if pod.is_here:
            # Not with the credentials that are meant for the API server.
            scheme = "https" if pod.tls else "http"
            url = f"{scheme}://{_host(pod.ip)}:{names.PORT_HTTP}{path}"
            async with (
                aiohttp.ClientSession(timeout=limits) as session,
                # This machine's own address: who answers there is certain.
                session.request(method, url, json=body, headers=headers, ssl=False) as response,
            ):
                yield response
            return
        await self._api.update_params_for_auth(
            headers, None, ["BearerToken"], None, None, None, request_auth=None
        )
        scheme = "https:" if pod.tls else ""
        proxied = PODS.path(namespace, f"{scheme}{pod.name}:{names.PORT_HTTP}", "proxy") + path
        answer = await self._api.rest_client.request(
            method, self._api.configuration.host + proxied,
            headers=headers, body=body, _request_timeout=limits,
        )  # fmt: skip
        async with answer.response as response:
            yield response


@asynccontextmanager
async def pod_proxy(
    kubeconfig: str | os.PathLike[str] | None, context: str | None
) -> AsyncIterator[PodProxy]:
    """A connection by the same configuration as `kube.connect.connect`.

    Raises:
        ConnectError: the configuration is missing or cannot be used.
    """
    api = await api_client(kubeconfig, context=context, user_agent="kubectl-pdserve")
    try:
        yield PodProxy(api)
    finally:
        await api.close()


def _host(ip: str) -> str:
    return f"[{ip}]" if ":" in ip else ip


async def _stream(
    content: aiohttp.StreamReader, answer: AskResult, show: Callable[[str], None]
) -> None:
    """Read server-sent events to their end; raises aiohttp's errors."""
    meter = StreamMeter(strip_usage=False)
    try:
        while data := await content.readany():
            for event in _events(meter.feed(data, time.perf_counter())):
                _take(event, answer, show)
    except (StreamError, json.JSONDecodeError) as error:
        answer.error = {"code": "bad_stream", "message": str(error)}
    finally:
        timeline = answer.timeline
        timeline.first, timeline.second = meter.first_at, meter.second_at
        timeline.last, timeline.output_tokens = meter.last_at, meter.tokens
        answer.usage = meter.usage or {}


def _events(ready: bytes) -> list[str]:
    """The data of whole events."""
    # Not splitlines: it also cuts at U+2028, which JSON may hold as it is.
    lines = ready.decode("utf-8", "replace").split("\n")
    return [line[5:].strip() for line in lines if line.startswith("data:")]


def _take(data: str, answer: AskResult, show: Callable[[str], None]) -> None:
    if data == "[DONE]":
        answer.complete = True
        return
    value = json.loads(data)
    if isinstance(value.get("error"), dict):
        answer.error = value["error"]
    for choice in value.get("choices") or ():
        text = choice.get("text") or (choice.get("delta") or {}).get("content")
        if text:
            show(text)
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason


def _refusal(status: int, body: bytes) -> JsonMap:
    """The gateway's error object; raises KubeError when it was the API server that refused."""
    try:
        value = json.loads(body)
    except ValueError:
        value = None
    if isinstance(value, dict) and value.get("kind") == "Status":
        raise KubeError.from_status(status, value)
    if isinstance(value, dict) and isinstance(value.get("error"), dict):
        error: JsonMap = value["error"]
        return error
    return {"code": f"status_{status}", "message": body.decode("utf-8", "replace").strip()[:300]}


def told(answer: AskResult, header: str) -> str:
    """Value of a header of the answer; "" when the gateway does not send it."""
    return answer.headers.get(header, "")


def request_id(answer: AskResult) -> str:
    """By which the request is found in logs."""
    return told(answer, HEADER_REQUEST_ID)
