"""Command line, places, and what the proxy reads of replies and of the engine's metrics."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import orjson
import pytest
from tests.support.gateway_rig import eventually, metric_values
from tests.support.proxy_rig import kv, rig

from pdserve.engineproxy.places import Places
from pdserve.engineproxy.proxy_config import EXAMPLES, parse
from pdserve.engineproxy.proxy_metrics import ProxyMetrics
from pdserve.engineproxy.stream_end import StreamEnds, TokenCounts, stream_error
from pdserve.wire import metrics

ENV = {"PDSERVE_TOKEN": "t"}
GOOD = ["--role", "decode", "--engine", "http://127.0.0.1:8001"]


def test_a_command_line() -> None:
    config = parse(
        [*GOOD, "--slots", "3", "--prefetch", "2", "--series", "a_total=b:c"],
        {**ENV, "PDSERVE_INSTANCE": "d0", "PDSERVE_DRAIN_SECONDS": "7", "PDSERVE_BIND": "::"},
    )
    assert (config.places, config.instance, config.drain_seconds) == (5, "d0", 7.0)
    assert (config.series, config.bind) == ({"a_total": "b:c"}, "::")
    assert parse(["--engine", "http://e:1"], {**ENV, "PDSERVE_ROLE": "prefill"}).role == "prefill"
    assert parse([*GOOD[2:], "--role", "prefill", "--prefetch", "2"], ENV).places == 4
    events = ["--kv-events", "tcp://127.0.0.1:5557", "--kv-events-replay", "tcp://[::1]:5558"]
    prefill = parse([*GOOD[2:], "--role", "prefill", *events], ENV)
    assert (prefill.kv_events, prefill.kv_events_replay) == (events[1], events[3])
    assert parse([*GOOD, *events], ENV).kv_events == ""


BAD = [
    ([], ENV, "--engine"),
    (["--engine", "http://e:1"], ENV, "--role or PDSERVE_ROLE"),
    (GOOD, {}, "PDSERVE_CONTROL_TOKEN_FILE"),
    (GOOD, {**ENV, "PDSERVE_DRAIN_SECONDS": "x"}, "PDSERVE_DRAIN_SECONDS"),
    *(([*GOOD, *extra], ENV, extra[0]) for extra in (
        ["--slots", "0"], ["--slots", "5000"], ["--slots", "x"], ["--prefetch", "-1"],
        ["--port", "70000"], ["--lease-seconds", "0"], ["--pull-seconds", "-1"],
        ["--reply-seconds", "0"], ["--drain-seconds", "-1"], ["--max-body-bytes", "1"],
        ["--engine", "127.0.0.1:8001"], ["--engine", "https://e:1"], ["--engine", "http://e"],
        ["--engine", "http://e:1/x"], ["--engine", "http://e:99999"], ["--engine", "http://[x:1"],
        ["--health-path", "health"], ["--engine-metrics-path", "/a b"],
        ["--kv-events", "tcp://*:5557"], ["--kv-events", "tcp://10.0.0.1:5557"],
        ["--kv-events", "tcp://127.0.0.1"], ["--kv-events", "tcp://127.0.0.1:99999"],
        ["--kv-events", "ipc:///tmp/x"], ["--kv-events-replay", "tcp://0.0.0.0:5558"],
        ["--series", "a"], ["--series", "a=b=c"], ["--series", "1a=b"], ["--series", "a="],
    )),
]  # fmt: skip


@pytest.mark.parametrize(("argv", "env", "told"), BAD)
def test_command_lines_that_are_refused(
    argv: list[str], env: dict[str, str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        parse(argv, env)
    assert stopped.value.code == 2
    assert told in capsys.readouterr().err


def test_help_has_examples_that_parse() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pdserve.engineproxy", "--help"],
        capture_output=True, text=True, check=True, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip
    assert EXAMPLES.strip() in done.stdout
    commands = EXAMPLES.replace("\\\n", " ").splitlines()
    found = [
        line.split("pdserve-engine-proxy ")[1].split() for line in commands if "=secret" in line
    ]
    assert [parse(argv, ENV).role for argv in found] == ["prefill", "decode"]


def test_places_are_counted_until_their_kv_is_gone() -> None:
    places = Places(2)
    a, b = places.take("a", 0.0), places.take("b", 1.0)
    assert a is not None
    assert b is not None
    assert places.take("c", 1.0) is None
    places.hold(a, {"remote_request_id": "cmpl-a"}, 2.0, lease=30.0)
    assert (places.executing, places.holding) == (1, 1)
    assert [places.find(name) for name in ("a", "cmpl-a", "b", "", "x")] == [a, a, b, None, None]
    assert places.overdue(31.9) == []
    assert places.overdue(32.0) == [a]
    assert places.free(a, 4.0)
    assert not places.free(a, 5.0), "once"
    places.hold(a, {}, 5.0, lease=1.0)
    assert (places.executing, places.holding) == (1, 0), "a place that is free stays free"


def test_the_hint_expects_the_oldest_place_after_the_mean_time() -> None:
    places = Places(1)
    first = places.take("a", 0.0)
    assert first is not None
    full = places.hint(0.0)
    assert (full.free, full.total, full.free_in_ms) == (0, 1, 50)
    places.free(first, 4.0)
    assert (places.hint(4.0).free, places.hint(4.0).free_in_ms) == (1, 0)
    places.take("b", 10.0)
    assert places.hint(11.0).free_in_ms == 3000
    assert places.hint(99.0).free_in_ms == 1
    assert places.hint(11.0).epoch > full.epoch


def test_an_engine_without_room_closes_places_for_a_while() -> None:
    places = Places(2)
    places.close(5.0)
    assert places.take("a", 5.9) is None
    assert (places.hint(5.5).free, places.hint(5.5).free_in_ms) == (0, 500)
    assert places.take("a", 6.0) is not None


NO_COUNTS: list[Any] = [
    None, [], {}, {"usage": 7}, {"usage": {"prompt_tokens": -1}}, {"usage": {"prompt_tokens": "7"}},
    {"usage": {"prompt_tokens": 1e30}}, {"usage": {"prompt_tokens": True}},
    {"usage": {"prompt_tokens_details": 7}},
]  # fmt: skip


@pytest.mark.parametrize(
    ("reply", "want"),
    [
        ({"usage": {"prompt_tokens": 7, "completion_tokens": 3}}, TokenCounts(7, 0, 3)),
        ({"usage": {"prompt_tokens_details": {"cached_tokens": 2}}}, TokenCounts(0, 2, 0)),
        *((odd, TokenCounts()) for odd in NO_COUNTS),
    ],
)
def test_counts_of_replies(reply: object, want: TokenCounts) -> None:
    assert TokenCounts.of(reply) == want


def test_the_first_event_of_a_stream_waits_until_it_is_whole() -> None:
    ends = StreamEnds()
    assert ends.first(b": ping\n\nda") is None
    assert ends.first(b'ta: {"choices":[]}\n') is None
    assert ends.first(b"\nmore") == b': ping\n\ndata: {"choices":[]}\n\nmore'
    assert ends.first(b"x") == b"x"
    for odd in (b"\n\n", b"\r\n\r\n", b": ping\r\n\r\n", b"event: x\n\n", b"\n: ping\n\n"):
        waits = StreamEnds()
        assert waits.first(odd) is None, odd
        assert waits.first(b"data: 1\r\n\r\n") == odd + b"data: 1\r\n\r\n"
    mixed = b": ping\ndata: 1\n\n"
    assert StreamEnds().first(mixed) == mixed
    endless = StreamEnds()
    assert endless.first(b"x" * 60_000) is None
    assert len(endless.first(b"x" * 60_000) or b"") == 120_000


@pytest.mark.parametrize(
    ("head", "error"),
    [
        (b'data: {"choices":[]}\n\n', ""),
        (b'data: {"error":{"message":"m"}}\n\n', "m"),
        (b'data: {"error":"m"}\n\n', "m"),
        (b'data: {"error":7}\n\n', "an error without a message"),
        (b'data: {"choices":[],"error":null}\n\n', ""),
        (b'data: {"object":"error","message":"m"}\n\n', "m"),
        (b': ping\r\n\r\ndata: {"error":"m"}\r\n\r\n', "m"),
        (b'event: error\ndata: {"error":"m"}\n\n', "m"),
        (b'\n\ndata:{"error":"m"}\n\n', "m"),
        (b'data: {"choices":[{}]}\n\ndata: {"error":"m"}\n\n', ""),
        (b"data: {nonsense\n\n", ""),
        (b"data: [DONE]\n\n", ""),
        (b"", ""),
    ],
)
def test_errors_at_the_beginning_of_streams(head: bytes, error: str) -> None:
    assert stream_error(head) == error


def test_usage_is_read_from_a_streams_end() -> None:
    ends = StreamEnds()
    for i in range(5000):
        ends.keep(b"data: " + orjson.dumps({"choices": [i]}) + b"\n\n")
    chunk = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}
    for piece in (b"data: " + orjson.dumps(chunk)[:20], orjson.dumps(chunk)[20:], b"\n\n"):
        ends.keep(piece)
    ends.keep(b"data: [DONE]\n\n")
    assert ends.counts() == TokenCounts(7, 0, 3)
    ends.keep(b'\r\n\r\ndata:{"usage":{"completion_tokens":4}}\r\n\r\n')
    assert ends.counts() == TokenCounts(0, 0, 4)
    assert StreamEnds().counts() == TokenCounts()


def test_the_engines_counters_are_read_and_may_begin_anew() -> None:
    made = ProxyMetrics("decode", 1, Places(1), {"steps_total": "e:n_count"})
    for text, want in [
        ('e:n_count{engine="0"} 5.0\ne:n_count{engine="1"} 2\ne:n_sum 99\n', 7),
        ("e:n_count 9\n", 9),
        ("e:n_count 1\n", 10),
        ("nothing of it\n# HELP e:n_count 99\n", 10),
        ("e:n_count NaN\ne:n_count -3\ne:n_count x\n", 10),
        ("e:n_count 3\n", 12),
    ]:
        made.read_engine(text)
        assert made.registry.value("steps_total") == want, text


async def test_series_of_a_pair() -> None:
    steps = {metrics.DECODE_STEPS: "vllm:iteration_tokens_total_count"}
    async with rig() as made:
        d1 = await made.add("decode", "d1", series=steps)
        await made.link()
        p = made.instances["p0"]
        params = kv(await p.generate("a"))
        ask: dict[str, Any] = {
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": 3,
        }
        assert (await d1.generate(kv_transfer_params=params, **ask)).status == 200
        await eventually(lambda: not p.held, "pulled")
        assert (await p.generate("b", kv_transfer_params=None)).status == 400
        text = {i.name: (await i.ask("GET", "/metrics")).body.decode() for i in (p, d1)}

        def value(name: str, series: str, **labels: str) -> float:
            (found,) = metric_values(text[name], series, labels)
            return found

        assert value("p0", metrics.PREFILL_REQUESTS) == 1
        assert value("p0", metrics.PREFILL_TOKENS) == 5
        assert value("p0", metrics.PREFILL_TOKENS_SQUARED) == 25
        assert value("p0", metrics.KV_TRANSFERS) == 1
        assert value("p0", metrics.KV_TRANSFER_SECONDS) > 0
        assert value("p0", metrics.SLOTS, state="total") == 2
        assert value("d1", metrics.DECODE_STEPS) == 3
        assert value("d1", metrics.DECODE_STEP_REQUESTS) == 3
        assert value("d1", metrics.DECODE_STEP_CONTEXT) == 7 + 8 + 9
        assert 0 < value("d1", metrics.DECODE_STEP_SECONDS) < 60
        raw = (await d1.ask("GET", "/metrics/engine")).body.decode()
        assert "vllm:iteration_tokens_total_count" in raw
