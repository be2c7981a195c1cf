"""Measuring a stream without disturbing it."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.forwarding.request.measure import Timeline, judge
from pdserve.gateway.sse import StreamError, StreamMeter
from pdserve.terms import Slo

HEAD = b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":3}}\n\n'
DONE = b"data: [DONE]\n\n"


def delta(text: str) -> bytes:
    return b'data: {"choices":[{"index":0,"delta":{"content":"%b"}}]}\n\n' % text.encode()


STREAM = HEAD + delta("a") + delta("b") + delta("c") + USAGE + DONE


def test_token_times_come_from_non_empty_deltas() -> None:
    meter = StreamMeter(strip_usage=True)
    for now, piece in enumerate([HEAD, delta("a"), delta("b"), delta("c"), USAGE, DONE]):
        meter.feed(piece, float(now))
    assert (meter.first_at, meter.second_at, meter.last_at, meter.tokens) == (1.0, 2.0, 3.0, 3)


@pytest.mark.parametrize(
    "event",
    [
        b'data: {"choices":[{"text":"x"}]}\n\n',
        b'data: {"choices":[{"delta":{"tool_calls":[{"index":0}]}}]}\n\n',
        b'data: {"choices":[{"delta":{"reasoning_content":"hm"}}]}\n\n',
    ],
)
def test_what_counts_as_content(event: bytes) -> None:
    meter = StreamMeter(strip_usage=True)
    assert meter.feed(event, 1.0) == event
    assert meter.first_at == 1.0


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=12))
def test_pieces_cut_anywhere_give_the_same_stream(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    for strip, want in ((True, STREAM.replace(USAGE, b"")), (False, STREAM)):
        meter = StreamMeter(strip_usage=strip)
        out = b"".join(meter.feed(STREAM[a:b], 1.0) for a, b in itertools.pairwise(edges))
        assert out == want
        assert meter.tokens == 3


@given(st.lists(st.integers(1, len(STREAM) - 1), max_size=6))
def test_only_whole_events_reach_the_client(cuts: list[int]) -> None:
    edges = [0, *sorted(set(cuts)), len(STREAM)]
    meter = StreamMeter(strip_usage=True)
    for a, b in itertools.pairwise(edges):
        out = meter.feed(STREAM[a:b], 1.0)
        assert out == b"" or out.endswith(b"\n\n")


def test_usage_on_every_chunk_is_kept_on_those_with_content() -> None:
    event = b'data: {"choices":[{"text":"x"}],"usage":{"completion_tokens":9}}\n\n'
    meter = StreamMeter(strip_usage=True)
    for _ in range(3):
        assert meter.feed(event, 1.0) == event
    assert meter.tokens == 9


def test_text_that_talks_about_usage_or_errors_is_only_text() -> None:
    event = rb'data: {"choices":[{"text":"\"usage\":{} data: {\"error\":1}"}]}' + b"\n\n"
    meter = StreamMeter(strip_usage=True)
    for _ in range(4):
        assert meter.feed(event, 1.0) == event
    assert meter.usage is None
    assert not meter.failed


def test_carriage_returns_are_separators_too() -> None:
    meter = StreamMeter(strip_usage=True)
    out = meter.feed(STREAM.replace(b"\n\n", b"\r\n\r\n"), 1.0)
    assert b"usage" not in out
    assert out.endswith(b"[DONE]\r\n\r\n")
    assert meter.first_at == 1.0


def test_an_error_event_marks_the_stream_failed() -> None:
    meter = StreamMeter(strip_usage=True)
    meter.feed(delta("a") + b'data: {"error":{"message":"x"}}\n\n' + DONE, 1.0)
    assert meter.failed


def test_nonsense_and_endless_events_are_errors() -> None:
    with pytest.raises(StreamError, match="not JSON"):
        StreamMeter(strip_usage=True).feed(b"data: {nope\n\n", 1.0)
    meter = StreamMeter(strip_usage=True)
    with pytest.raises(StreamError, match="larger"):
        for _ in range(20):
            meter.feed(b"x" * (1 << 20), 1.0)


SLO = Slo(ttft=1.0, handoff=0.2, tpot=0.1, attainment=0.9)


def test_definitions_of_the_three_latencies() -> None:
    t = Timeline(10.0, streamed=True, first=10.5, second=10.6, last=11.1, output_tokens=7)
    assert t.ttft == pytest.approx(0.5)
    assert t.handoff == pytest.approx(0.1)
    assert t.tpot == pytest.approx(0.1)
    whole = Timeline(10.0, streamed=False, first=10.5, last=11.1, output_tokens=7)
    assert whole.handoff is None
    assert whole.tpot == pytest.approx(0.1)
    two = Timeline(10.0, streamed=True, first=10.5, second=10.6, last=10.6, output_tokens=2)
    assert two.tpot is None


@pytest.mark.parametrize(
    ("timeline", "outcome", "want"),
    [
        (Timeline(0, True, 0.9, 1.0, 1.5, output_tokens=7), "completed", (1, 1, 1, 1)),
        (Timeline(0, True, 1.1, 1.2, 1.7, output_tokens=7), "completed", (0, 1, 1, 0)),
        (Timeline(0, True, 0.9, 1.2, 1.7, output_tokens=7), "completed", (1, 0, 1, 0)),
        (Timeline(0, True, 0.9, 1.0, 2.5, output_tokens=7), "completed", (1, 1, 0, 0)),
        (Timeline(0, True, 0.9, output_tokens=1), "completed", (1, 1, 1, 1)),
        (Timeline(0, True, 0.9, 1.0, 1.2), "failed", (1, 1, 0, 0)),
        (Timeline(0, True), "expired", (0, 0, 0, 0)),
        (Timeline(0, False, 0.9), "decode_overload", (1, 0, 0, 0)),
    ],
    ids=["all", "slow start", "slow handoff", "slow tokens", "one token", "broken", "expired",
         "no decode"],
)  # fmt: skip
def test_verdict(timeline: Timeline, outcome: str, want: tuple[int, ...]) -> None:
    v = judge(timeline, outcome, SLO)  # type: ignore[arg-type]
    assert (v.ttft, v.handoff, v.tpot, v.all) == tuple(map(bool, want))
