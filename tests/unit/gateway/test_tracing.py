"""Traces of requests with real sockets: engines and a collector are stubs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from tests.support.collector_stub import CollectorStub, values
from tests.support.gateway_rig import Rig, eventually

from pdserve.gateway.trace_context import MAX_STATE
from pdserve.gateway.trace_settings import read_tracing
from pdserve.gateway.tracing import MAX_QUEUE
from pdserve.terms.limits import UsageLimits

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1,other=x"}


@pytest_asyncio.fixture
async def collector() -> AsyncIterator[CollectorStub]:
    collector = await CollectorStub().start()
    yield collector
    await collector.stop()


async def traced(rig: Rig, collector: CollectorStub, prefills: int = 1, **env: str) -> None:
    """A gateway over one group that exports to the collector."""
    settings = read_tracing({"OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint, **env})
    assert settings is not None
    await rig.one_group(prefills=prefills, decodes=2, tracing=settings)


async def spans(collector: CollectorStub, count: int) -> list[Span]:
    await eventually(lambda: len(collector.spans) >= count, f"{count} spans arrive")
    return collector.spans


def context_of(headers: dict[bytes, bytes]) -> tuple[str, str, str]:
    """Trace, span and flags that an engine got."""
    version, trace, span, flags = headers[b"traceparent"].decode().split("-")
    assert version == "00"
    return trace, span, flags


async def test_a_stream_with_a_retry_is_one_trace(rig: Rig, collector: CollectorStub) -> None:
    await traced(rig, collector, prefills=2, OTEL_SERVICE_NAME="shop-gateway")
    for engine in ("p0", "p1"):
        rig.engines[engine].script = ["full"]
    rig.engines["d0"].script = rig.engines["d1"].script = ["ok"]
    answer = await rig.complete(CLIENT, stream=True, max_tokens=5, temperature=0.5, n=1)
    assert answer.status == 200
    found = await spans(collector, 5)
    (request,) = collector.named("text_completion tiny")
    assert (request.trace_id.hex(), request.parent_span_id.hex()) == (TRACE, PARENT)
    assert request.trace_state == CLIENT["tracestate"]
    assert request.kind == Span.SPAN_KIND_SERVER
    told = values(request.attributes)
    wanted = {
        "gen_ai.operation.name": "text_completion", "gen_ai.request.model": "tiny",
        "gen_ai.request.max_tokens": 5, "gen_ai.request.temperature": 0.5,
        "gen_ai.usage.input_tokens": 7, "gen_ai.usage.output_tokens": 5,
        "http.response.status_code": 200, "url.path": "/v1/completions",
        "pdserve.scenario": "chat", "pdserve.outcome": "completed",
        "pdserve.request.id": answer.headers["x-request-id"],
    }  # fmt: skip
    assert {name: told.get(name) for name in wanted} == wanted
    first_token = told["gen_ai.latency.time_to_first_token"]
    assert isinstance(first_token, float)
    assert 0 < first_token < 60
    prefills, (decode,) = collector.named("prefill"), collector.named("decode")
    assert len(prefills) >= 2
    *refused, accepted = prefills
    assert values(accepted.attributes)["pdserve.result"] == "accepted"
    assert {values(p.attributes)["pdserve.result"] for p in refused} == {"refused: full"}
    events = [(e.name, values(e.attributes)["pdserve.reason"]) for e in request.events]
    assert events == [("leg refused", "full")] * len(refused)
    for span in found:
        assert span.trace_id.hex() == TRACE
        if span is not request:
            assert span.parent_span_id == request.span_id
        assert request.start_time_unix_nano <= span.start_time_unix_nano
        assert span.start_time_unix_nano <= span.end_time_unix_nano
        assert span.end_time_unix_nano <= request.end_time_unix_nano
    assert accepted.end_time_unix_nano <= decode.start_time_unix_nano
    assert len({s.span_id for s in found}) == len(found)
    assert collector.resources[0]["service.name"] == "shop-gateway"
    assert collector.paths[0] == "/v1/traces"
    assert collector.headers[0][b"content-type"] == b"application/x-protobuf"


async def test_what_engines_record_are_children_of_the_legs(
    rig: Rig, collector: CollectorStub
) -> None:
    await traced(rig, collector)
    assert (await rig.chat()).status == 200
    await spans(collector, 3)
    for role, names in (("prefill", ("p0",)), ("decode", ("d0", "d1"))):
        (span,) = collector.named(role)
        (engine,) = (rig.engines[n] for n in names if rig.engines[n].headers)
        trace, parent, flags = context_of(engine.headers[0])
        assert (trace, parent, flags) == (span.trace_id.hex(), span.span_id.hex(), "01")
        where = values(span.attributes)
        assert (where["pdserve.instance"], where["server.port"]) == (engine.name, engine.port)
    (request,) = collector.named("chat tiny")
    assert not request.parent_span_id


HOSTILE = (
    "", "x", "00-a-b-01", f"00-{'0' * 32}-{PARENT}-01", f"00-{TRACE}-{'0' * 16}-01",
    f"ff-{TRACE}-{PARENT}-01", f"00-{TRACE}-{PARENT}-01-more", f"00-{TRACE.upper()}-{PARENT}-01",
    f"00-{TRACE}-{PARENT}", f"00-{TRACE}-{PARENT}-1", f"00-{TRACE}-{PARENT}-zz",
    f"00-{TRACE}0-{PARENT}-01", f"00_{TRACE}_{PARENT}_01", f"00-{TRACE}-{PARENT}-01" * 20,
    f"00-{TRACE}-{PARENT}-01, 00-{TRACE}-{PARENT}-01", f"01-{TRACE}-{PARENT}-01-{'x' * 9000}",
    f"\xff0-{TRACE}-{PARENT}-01",
)  # fmt: skip


@pytest.mark.parametrize("hostile", HOSTILE)
async def test_a_malformed_traceparent_counts_as_none(
    hostile: str, rig: Rig, collector: CollectorStub
) -> None:
    await traced(rig, collector)
    text = hostile.encode("latin-1").decode("utf-8", "replace") if "\xff" in hostile else hostile
    answer = await rig.complete({"traceparent": text, "tracestate": "a=1"})
    assert answer.status == 200
    await spans(collector, 3)
    (request,) = collector.named("text_completion tiny")
    assert request.trace_id.hex() != TRACE
    assert not request.parent_span_id
    headers = rig.engines["p0"].headers[0]
    assert context_of(headers)[0] == request.trace_id.hex()
    assert b"tracestate" not in headers, "it goes with a good traceparent only"


@pytest.mark.parametrize(
    ("state", "passed"),
    [("a=1", True), ("x" * MAX_STATE, True), ("x" * (MAX_STATE + 1), False), ("é", False)],
)
async def test_a_state_that_is_too_long_is_not_passed_on(
    state: str, passed: bool, rig: Rig, collector: CollectorStub
) -> None:
    await traced(rig, collector)
    await rig.complete({**CLIENT, "tracestate": state})
    headers = rig.engines["p0"].headers[0]
    assert headers.get(b"tracestate") == (state.encode() if passed else None)
    assert context_of(headers)[0] == TRACE


async def test_what_is_not_sampled_is_not_exported_and_engines_see_so(
    rig: Rig, collector: CollectorStub
) -> None:
    await traced(rig, collector, OTEL_TRACES_SAMPLER="parentbased_always_off")
    await rig.complete()
    await rig.complete({"traceparent": f"00-{TRACE}-{PARENT}-00", "tracestate": "a=1"})
    prefill = rig.engines["p0"]
    own, theirs = prefill.headers
    assert context_of(own)[2] == "00"
    assert context_of(theirs) == (TRACE, PARENT, "00")
    assert theirs[b"tracestate"] == b"a=1"
    await rig.complete(CLIENT)
    await spans(collector, 3)
    assert {s.trace_id.hex() for s in collector.spans} == {TRACE}


async def test_refusals_are_events_with_their_reason(rig: Rig, collector: CollectorStub) -> None:
    await traced(rig, collector)
    await rig.routes(list(rig.engines.values()), limits=UsageLimits(tokens=100))
    assert (await rig.complete(max_tokens=1000)).status == 429
    rig.engines["p0"].script = ["500", "500"]
    assert (await rig.chat(max_tokens=5)).status == 502
    await spans(collector, 4)
    (limited,) = collector.named("text_completion tiny")
    assert values(limited.attributes)["error.type"] == "rate_limit_exceeded"
    assert [e.name for e in limited.events] == ["refused"]
    assert limited.status.code == Status.STATUS_CODE_UNSET, "429 is the client's"
    (failed,) = collector.named("chat tiny")
    assert failed.status.code == Status.STATUS_CODE_ERROR
    assert failed.status.message == "upstream_error"
    legs = collector.named("prefill")
    assert [s.status.code for s in legs] == [Status.STATUS_CODE_ERROR] * len(legs)


async def test_a_collector_that_hangs_refuses_or_is_gone_holds_no_request(
    rig: Rig, collector: CollectorStub
) -> None:
    await traced(rig, collector, OTEL_EXPORTER_OTLP_TIMEOUT="60000")
    collector.gate = asyncio.Event()
    await rig.complete()
    await eventually(lambda: collector.exports == 1, "an export hangs")
    per_request = 3
    for _ in range(MAX_QUEUE // per_request + 5):
        assert (await rig.complete()).status == 200
    name = "pdserve_gateway_spans_total"
    assert await rig.metric(name, result="queue_full") >= per_request
    collector.status = 503
    collector.gate.set()
    collector.gate = None
    failed = 0.0
    for _ in range(6000):
        failed = await rig.metric(name, result="failed")
        if failed:
            break
        await asyncio.sleep(0.01)
    assert failed > 0
    await collector.stop()
    assert (await rig.complete()).status == 200


async def test_what_is_queued_is_exported_at_the_end(rig: Rig, collector: CollectorStub) -> None:
    await traced(rig, collector)
    await rig.complete()
    await rig.gateway.stop()
    await spans(collector, 3)


async def test_several_choices_are_legs_of_one_request(rig: Rig, collector: CollectorStub) -> None:
    await traced(rig, collector)
    assert (await rig.complete(n=2)).status == 200
    await spans(collector, 5)
    (request,) = collector.named("text_completion tiny")
    assert values(request.attributes)["gen_ai.request.choice.count"] == 2
    assert len(collector.named("decode")) == 2
    assert {s.parent_span_id for s in collector.named("prefill")} == {request.span_id}
