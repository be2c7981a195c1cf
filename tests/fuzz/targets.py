"""Every parser of bytes that another party sends, with its declared errors and good inputs."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import yaml
from tests.fuzz.target import Target, prefix_targets
from tests.support import kv_corruptions

from pdserve.api import InvalidObjectError as CrError
from pdserve.api import PDService, RoCEDomain, ScenarioGroup
from pdserve.api.units import Duration
from pdserve.desired.routing import parse_routes
from pdserve.dst.world_service import service
from pdserve.engines.flow import FlowError
from pdserve.engines.pull_flow import PullFlow
from pdserve.gateway.intake import parse_body
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.groups.observe import NotOurs, instance_obs
from pdserve.http1.client import Exchange
from pdserve.http1.errors import ApiError
from pdserve.http1.listener import UpstreamError
from pdserve.http1.receive import Receiver
from pdserve.ratio.learn import LearnState
from pdserve.ratio.records import RecordError, from_json
from pdserve.refengine.api import openai
from pdserve.refengine.kv import protocol
from pdserve.refengine.kv.frames import CheckedLanding
from pdserve.refengine.kv.kv_transport import CorruptKvError, TransportError
from pdserve.refengine.kv.payload import frame_sizes
from pdserve.refengine.model.loader import load_model
from pdserve.telemetry import promql
from pdserve.terms.quantity import QuantityError, quantity
from pdserve.topology import node_view, pod_view
from pdserve.wire import credentials
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.hints import parse_hint
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable
from pdserve.wire.routes import RouteTable

EXAMPLES = Path(__file__).parents[2] / "examples"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _wire(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    return lambda data: read(parse_json(data))


def _object(read: Callable[[Any], object]) -> Callable[[bytes], object]:
    """For objects of the API server: JSON objects by the time they are read."""

    def parse(data: bytes) -> object:
        try:
            value = orjson.loads(data)
        except orjson.JSONDecodeError:
            return None
        return read(value) if isinstance(value, dict) else None

    return parse


_PEERS = {
    "schemaVersion": 1, "group": "g", "version": 3, "instances": [
        {"id": "p0", "role": "prefill", "endpoint": "http://10.0.0.1:8000",
         "transfer": "10.0.0.1:5600", "revision": "abc", "domains": {"leaf": "a"},
         "nodes": [{"name": "n", "devices": [{"id": 0, "ip": "10.1.0.1"}]}]},
        {"id": "d0", "role": "decode", "endpoint": "http://10.0.0.2:8000",
         "transfer": "10.0.0.2:5600", "revision": "abc", "domains": {}, "nodes": []},
    ], "tierCosts": {"leaf": 1}, "unreachable": [["p0", "d0"]],
}  # fmt: skip
_ROUTES = {
    "schemaVersion": 1, "service": "s", "version": 9, "model": "m", "engine": "Reference",
    "tierCosts": {"leaf": 1}, "scenarios": [
        {"name": "chat", "match": {"models": ["m"], "headers": {"x": "y"}},
         "slo": {"ttft": 1.0, "handoff": 0.2, "tpot": 0.04, "attainment": 0.99},
         "prefillSeconds": [0.01, 0.001], "groups": [
            {"index": 0, "revision": "abc", "models": ["m"], "maxPromptBytes": 4096, "instances": [
                {"id": "p0", "role": "prefill", "endpoint": "http://10.0.0.1:8000", "slots": 4,
                 "domains": {"leaf": "a"}}]}]}],
}  # fmt: skip
_LINKS = {"version": 3, "up": ["d0"], "down": {"d1": "refused"}, "maxPromptBytes": 9}
_DRAIN = {"executing": 1, "holding": 0, "streams": 2}
_GRANT = {
    "revision": "1", "control": ["sha256:" + "a" * 64], "request": ["sha256:" + "b" * 64],
    "required": True, "sharedToken": False, "peers": {"d0": {"keys": ["c" * 64], "legacy": False}},
}  # fmt: skip
_VECTOR = [
    {"metric": {"namespace": "n", "pdserve_io_service": "s", "pod": "p"}, "value": [1e9, "1.5"]}
]
_CHAT = {
    "model": "pdserve-tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4,
    "stream": True, "stream_options": {"include_usage": True}, "temperature": 0.5, "stop": ["x"],
}  # fmt: skip
_TEXT = {"model": "pdserve-tiny", "prompt": "Once", "max_tokens": 4, "logprobs": 2, "seed": 1}
_DECODE = {
    **_TEXT, "kv_transfer_params": {
        "do_remote_prefill": True, "remote_engine_id": "p0", "remote_request_id": "r",
        "remote_num_tokens": 3, "pdserve": {
            "first_token_ids": [5], "first_logprob": -0.5, "first_top_logprobs": [[5, -0.5]],
            "seed": 7, "position": 3, "cached_tokens": 0}}}  # fmt: skip
_CHUNK = {
    "id": "x", "object": "chat.completion.chunk", "choices": [
        {"index": 0, "delta": {"content": "a"}, "finish_reason": None}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}  # fmt: skip
_REPLY = {
    "id": "x", "choices": [{"index": 0, "text": "a", "finish_reason": "length"}],
    "usage": {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4},
    "kv_transfer_params": {"remote_request_id": "r", "remote_engine_id": "p0"},
}  # fmt: skip
_POD: dict[str, Any] = {
    "metadata": {
        "name": "s-chat-0-p0-abc", "namespace": "n", "uid": "u", "creationTimestamp":
        "2026-01-01T00:00:00Z", "labels": {
            "pdserve.io/role": "prefill", "pdserve.io/group-index": "0",
            "pdserve.io/instance": "s-chat-0-p0", "pdserve.io/revision": "abc"},
        "annotations": {"pdserve.io/drain-started": "2026-01-01T00:00:00Z"}},
    "spec": {"nodeName": "n0", "containers": [
        {"name": "engine", "resources": {"limits": {"huawei.com/Ascend910": "2"}}}]},
    "status": {
        "phase": "Running", "podIP": "10.0.0.1", "startTime": "2026-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime":
                        "2026-01-01T00:00:00Z"}],
        "containerStatuses": [{"name": "engine", "containerID": "c://1", "ready": True,
                               "restartCount": 0, "state": {"running": {}}}]},
}  # fmt: skip
_NODE: dict[str, Any] = {
    "metadata": {"name": "n0", "labels": {"fabric/leaf": "a"}, "annotations": {
        "pdserve.io/roce-devices": '[{"id": 0, "ip": "10.1.0.1"}]',
        "pdserve.io/unhealthy-devices": "0,1"}},
    "spec": {"taints": [{"key": "k", "effect": "NoSchedule"}]},
    "status": {"capacity": {"huawei.com/Ascend910": "8"}, "allocatable":
               {"huawei.com/Ascend910": "8"}, "conditions": [
                   {"type": "Ready", "status": "True", "lastTransitionTime": "x"}]},
}  # fmt: skip


def _quantity(data: bytes) -> object:
    return quantity(data.decode("latin-1"))


def _duration(data: bytes) -> object:
    return Duration(data.decode("latin-1")).seconds


def _annotations(data: bytes) -> object:
    """A node whose annotations and quantities are any text."""
    text = data.decode("latin-1")
    annotations = {"pdserve.io/roce-devices": text, "pdserve.io/unhealthy-devices": text}
    amounts = {"huawei.com/Ascend910": text, "example.com/x": text, "cpu": text}
    status = {**_NODE["status"], "capacity": amounts, "allocatable": amounts}
    return node_view({**_NODE, "metadata": {"name": "n0", "annotations": annotations},
                      "status": status}, [pod_view(_POD)])  # fmt: skip


def _pod(data: bytes) -> object:
    """A pod whose quantities, times, annotations and labels are any text."""
    text = data.decode("latin-1")
    pod = json.loads(json.dumps(_POD))
    limits = {"huawei.com/Ascend910": text, "cpu": text}
    pod["spec"]["containers"][0]["resources"] = {"limits": limits, "requests": limits}
    pod["metadata"]["annotations"] = {"pdserve.io/drain-started": text, "pdserve.io/replaces": text}
    pod["metadata"]["labels"]["pdserve.io/group-index"] = text
    pod["metadata"]["creationTimestamp"] = pod["status"]["startTime"] = text
    pod["status"]["conditions"][0]["lastTransitionTime"] = text
    seen = pod_view(pod)
    return seen.devices, instance_obs(seen, node_view(_NODE), 1.77e9)


def _table(text: bytes) -> object:
    return parse_routes({"metadata": {"name": "r", "namespace": "n"},
                         "data": {"routes.json": text.decode("latin-1")}})  # fmt: skip


def _requests(data: bytes) -> object:
    receiver = Receiver(16 << 10, 1 << 20)
    for start in range(0, len(data), 1500):
        receiver.receive(data[start : start + 1500])
    return list(receiver.received), receiver.refusal


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


class _Deaf(asyncio.Transport):
    """Takes what is written and delivers nothing."""

    def write(self, data: object) -> None:
        pass

    def abort(self) -> None:
        pass


def _exchange(data: bytes) -> object:
    async def feed() -> object:
        exchange = Exchange()
        exchange.connection_made(_Deaf())
        task = asyncio.ensure_future(exchange.request(b"", 5.0))
        await asyncio.sleep(0)
        for start in range(0, len(data), 1500):
            exchange.data_received(data[start : start + 1500])
        exchange.connection_lost(None)
        await task
        return await exchange.read(5.0)

    return _loop().run_until_complete(feed())


def _hint(data: bytes) -> object:
    slots, _, rest = data.partition(b"|")
    free_in, _, epoch = rest.partition(b"|")
    return parse_hint(slots, free_in, epoch)


def _stream(data: bytes) -> object:
    meter = StreamMeter(strip_usage=True)
    for start in range(0, len(data), 700):
        meter.feed(data[start : start + 700], 1.0)
    meter.finish()
    return meter.tokens


def _frames(data: bytes) -> object:
    view, count = memoryview(data), 0
    while (found := protocol.decode(view)) is not None:
        view, count = view[found[2] :], count + 1
    return count


def _kv(data: bytes) -> object:
    memory = memoryview(bytearray(kv_corruptions.BLOCKS * kv_corruptions.BLOCK_BYTES))
    frames = frame_sizes(kv_corruptions.BLOCKS, kv_corruptions.EACH)
    return CheckedLanding([memory], kv_corruptions.IDENTITY, frames).fill(memoryview(data))


@functools.cache
def _model() -> Any:
    return load_model(None)


def _engine_body(kind: openai.Kind, role: str) -> Callable[[bytes], object]:
    def parse(data: bytes) -> object:
        limits = openai.RequestLimits(role, "pdserve-tiny", 512, 8192)  # type: ignore[arg-type]
        draft = openai.read(kind, data, _model(), limits)
        prompt = draft.tokenise() if draft.text_bytes < 2000 else [1]
        return draft.request("r", None, prompt)

    return parse


def _prefill_reply(data: bytes) -> object:
    return PullFlow().read_prefill({"model": "m", "prompt": "x"}, data)


def _requests_seeds() -> tuple[bytes, ...]:
    body = _json(_TEXT)
    head = b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    chunked = b"5\r\nabcde\r\n0\r\n\r\n"
    return (
        head + b"content-length: %d\r\n\r\n" % len(body) + body,
        head + b"transfer-encoding: chunked\r\n\r\n" + chunked,
        b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n" * 3,
        b"HEAD / HTTP/1.0\r\n\r\n",
    )


def targets() -> tuple[Target, ...]:
    """All of them, in a fixed order."""
    shop = service(ratio={"mode": "Fixed", "fixed": {"groups": 1, "prefill": 1, "decode": 1}})
    domain = yaml.safe_load((EXAMPLES / "demo-rocedomain.yaml").read_text())
    wire = (WireError,)
    frame = protocol.encode(protocol.FrameKind.HELLO, {"id": "d0", "nonce": "ab", "mac": "cd"})
    event = b"data: " + _json(_CHUNK) + b"\n\n"
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nx-pdserve-slots: 1/4\r\n\r\n{}"
    return (
        Target("wire.peers", _wire(PeerTable.from_json), wire, (_json(_PEERS),)),
        Target("wire.routes", _wire(RouteTable.from_json), wire, (_json(_ROUTES),)),
        Target("wire.links", _wire(LinkReport.from_json), wire, (_json(_LINKS),)),
        Target("wire.drain", _wire(DrainReport.from_json), wire, (_json(_DRAIN),)),
        Target("wire.credentials", _wire(credentials.Grant.from_json), wire, (_json(_GRANT),)),
        *prefix_targets(),
        Target("terms.quantity", _quantity, (QuantityError,),
               (b"8", b"1500m", b"1e3", b"1.5Gi", b"+2Ti", b"12E-1")),
        Target("desired.routes", _table, (), (_json(_ROUTES),)),
        Target("api.pdservice", _object(PDService.parse), (CrError,), (_json(shop),)),
        Target("api.scenariogroup", _object(ScenarioGroup.parse), (CrError,), (_group(),)),
        Target("api.rocedomain", _object(RoCEDomain.parse), (CrError,), (_json(domain),)),
        Target("api.duration", _duration, (ValueError,), (b"800ms", b"1m30s", b"0.2s")),
        Target("topology.node", _annotations, (),
               (b'[{"id": 0, "ip": "10.1.0.1"}]', b"0,1", b"8", b"1Ti")),
        Target("groups.pod", _pod, (NotOurs,), (b"2026-01-01T00:00:00Z", b"1e3", b"0")),
        Target("telemetry.vector", _wire(promql.parse), (ValueError,), (_json(_VECTOR),)),
        Target("telemetry.time", _wire(promql.parse_time), (ValueError,), (b'[1e9, "1e9"]',)),
        Target("ratio.profile", lambda data: from_json(LearnState, data.decode("latin-1")),
               (RecordError,), (b'{"key": "x"}',)),
        Target("http.requests", _requests, (), _requests_seeds()),
        Target("http.replies", _exchange, (UpstreamError,),
               (reply, reply.replace(b"200 OK", b"503 No"))),
        Target("gateway.hint", _hint, (), (b"1/4|250|17", b"0/16|0|3")),
        Target("gateway.sse", _stream, (StreamError,), (event * 3 + b"data: [DONE]\n\n", event)),
        Target("gateway.chat", lambda data: parse_body("chat", data), (ApiError,),
               (_json(_CHAT),)),
        Target("gateway.completions", lambda data: parse_body("completions", data), (ApiError,),
               (_json(_TEXT),)),
        Target("gateway.prefill_reply", _prefill_reply, (FlowError,), (_json(_REPLY),)),
        Target("engine.chat", _engine_body("chat", "both"), (ApiError,), (_json(_CHAT),)),
        Target("engine.completions", _engine_body("completion", "both"), (ApiError,),
               (_json(_TEXT),)),
        Target("engine.decode", _engine_body("completion", "decode"), (ApiError,),
               (_json(_DECODE),)),
        Target("kv.frames", _frames, (TransportError,), (frame * 3, frame)),
        Target("kv.payload", _kv, (CorruptKvError,), (bytes(kv_corruptions.Corruptions(0).good),)),
    )  # fmt: skip


def _group() -> bytes:
    role = {
        "replicas": 1, "instance": {"devicesPerNode": 1, "resource": "huawei.com/Ascend910"},
        "maxConcurrency": 4,
    }  # fmt: skip
    return _json(
        {"apiVersion": "pdserve.io/v1alpha1", "kind": "ScenarioGroup",
         "metadata": {"name": "g", "namespace": "n"},
         "spec": {"service": "s", "scenario": "c", "replicas": 1, "model": {"name": "m"},
                  "engine": {"type": "Reference", "image": "i"}, "prefill": role, "decode": role,
                  "fabric": {"domainRef": {"name": "d"}}}}
    )  # fmt: skip
