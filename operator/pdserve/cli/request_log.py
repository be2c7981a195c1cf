"""`kubectl pdserve explain --request ID`: what a gateway's access log says of one request.

Reads the logs of the gateway pods of a namespace through the API server, newest lines only, and
tells the line in words: the outcome, every leg with its instance and answer, and why. Neighbour:
`gateway.access_log` writes these lines.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp

from pdserve.cli.ask_target import AskError
from pdserve.desired.objects import COMPONENT
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import api_client
from pdserve.kube.errors import UNREACHABLE, KubeError
from pdserve.kube.resource import PODS
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

TAIL_LINES = 100_000
"""Of each pod: at 100 requests a second the last quarter of an hour."""
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Found:
    """A request in the log of gateway pod `pod`."""

    pod: str
    line: JsonMap


async def find(
    client: KubeClient,
    request_id: str,
    namespace: str,
    service: str | None,
    *,
    kubeconfig: str | None,
    context: str | None,
) -> Found:
    """The newest line with this request id in the logs of a service's gateways (None: of all).

    Raises:
        AskError: no log that could be read has it; the message says which were read.
        KubeError: the API server said no to every log, or nothing.
    """
    selector = f"{names.LABEL_COMPONENT}={COMPONENT}"
    if service is not None:
        selector += f",{names.LABEL_SERVICE}={service}"
    pods = (await client.list(PODS, namespace, label_selector=selector)).items
    read, errors = [], []
    api = await api_client(kubeconfig, context=context, user_agent="kubectl-pdserve")
    try:
        for pod in sorted(p["metadata"]["name"] for p in pods):
            path = PODS.path(namespace, pod, "log") + f"?container=gateway&tailLines={TAIL_LINES}"
            try:
                line = await _search(api, path, request_id)
            except KubeError as error:
                errors.append(error)
                continue
            if line is not None:
                return Found(pod, line)
            read.append(pod)
    finally:
        await api.close()
    if errors and not read:
        raise errors[0]
    raise AskError(
        f"no gateway's log has request {request_id!r}; read in namespace {namespace}: "
        f"{', '.join(read) or 'none (no gateway pods)'}" + "".join(f"; {error}" for error in errors)
    )


async def _search(api: Any, path: str, request_id: str) -> JsonObject | None:
    """The last matching line of one log."""
    headers: dict[str, str] = {**api.default_headers, "Accept": "*/*"}
    await api.update_params_for_auth(
        headers, None, ["BearerToken"], None, None, None, request_auth=None
    )
    limits = aiohttp.ClientTimeout(total=PATIENCE_SECONDS)
    try:
        answer = await api.rest_client.request(
            "GET", api.configuration.host + path, headers=headers, _request_timeout=limits
        )
        async with answer.response as response:
            if response.status != 200:
                said = (await response.content.read(2000)).decode(errors="replace")
                raise KubeError(response.status, response.reason or "", said)
            found = None
            async for raw in _lines(response.content):
                found = match(raw, request_id) or found
            return found
    except (TimeoutError, aiohttp.ClientError, OSError) as error:
        why = str(error) or type(error).__name__
        raise KubeError(0, UNREACHABLE, f"{path.partition('?')[0]}: {why}") from error


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    rest = b""
    while piece := await content.readany():
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line
    yield rest


def match(raw: bytes, request_id: str) -> JsonObject | None:
    """The access log line if it is this request's; None for another's or what is no such line."""
    if request_id.encode() not in raw:
        return None
    try:
        line = json.loads(raw)
    except ValueError:
        return None
    if isinstance(line, dict) and line.get("request") == request_id:
        return line
    return None


def render(found: Found) -> str:
    """The line in words."""
    line = found.line
    get = line.get
    told = [f"request {get('request')}: {get('status')} {get('outcome', get('code', ''))}".rstrip()]
    told.append(f"  at {get('time')} through gateway {found.pod}, {get('path')}, {get('ms')} ms")
    if "scenario" in line:
        form = "streamed" if get("streamed") else "whole reply"
        told.append(
            f"  scenario {get('scenario')}, {form}, {get('promptTokens')} prompt and "
            f"{get('outputTokens')} output tokens, prefill predicted {get('predictedMs')} ms"
        )
    if "cachedTokens" in line or "expectedCachedTokens" in line:
        told.append(
            f"  {get('cachedTokens', 0)} prompt tokens were in a prefix cache, "
            f"{get('expectedCachedTokens', 0)} were expected there"
        )
    times = [f"{name} {line[key]} ms" for key, name in _TIMES if key in line]
    if times:
        told.append(f"  {', '.join(times)}")
    if get("why"):
        told.append(f"  why: {get('why')} ({get('code')})")
    if get("continued"):
        told.append(
            f"  went on from another decode after {get('continued')} was lost in mid-stream"
        )
    if get("failover"):
        told.append("  an instance was lost under it; it was tried on another")
    if get("tried"):
        told.append("  its prefill was predicted to take too long, and tried all the same")
    legs: Sequence[JsonMap] = get("legs") or ()
    if legs:
        told.append("  legs:")
    told += [
        f"    at {leg.get('atMs')} ms: {leg.get('leg')} {leg.get('instance')}, "
        f"{leg.get('result')} after {leg.get('ms')} ms"
        for leg in legs
    ]
    return "\n".join(told)


_TIMES = (
    ("ttftMs", "TTFT"), ("handoffMs", "handoff"), ("needed_ms", "needed"), ("left_ms", "left"),
    ("retry_after_ms", "retry after"),
)  # fmt: skip
