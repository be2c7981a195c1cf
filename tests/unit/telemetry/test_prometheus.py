"""What answers as Prometheus decides neither whom we ask nor how much memory it takes."""

from __future__ import annotations

import gc
import gzip
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread
from typing import Any

import pytest

from pdserve.engines import registry
from pdserve.ratio.types import ScenarioSample, Unknown
from pdserve.telemetry import session
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource
from pdserve.telemetry.source import LiveInstances, ScenarioKey

KEY = ScenarioKey("ns", "shop", "chat")
Answer = Callable[[BaseHTTPRequestHandler], None]


@contextmanager
def serving(answer: Answer) -> Iterator[tuple[str, list[str]]]:
    """A server's URL, and the `Accept-Encoding` of each request it got."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(self.headers.get("Accept-Encoding", ""))
            answer(self)

        def log_message(self, *_args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()


def reply(handler: BaseHTTPRequestHandler, status: int, body: bytes, **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


async def reason(url: str) -> str:
    series = registry.series()
    source = PrometheusSource(PrometheusSettings(url, series, query_timeout=60, round_timeout=60))
    (found,) = (await source.sample({KEY: LiveInstances(frozenset({"gw"}))})).values()
    await source.close()
    assert isinstance(found, Unknown)
    return found.reason


async def test_no_redirection_is_followed() -> None:
    with (
        serving(lambda h: reply(h, 200, b"{}")) as (elsewhere, asked),
        serving(lambda h: reply(h, 307, b"", Location=elsewhere + "/x")) as (url, _),
    ):
        assert "307" in await reason(url)
        assert asked == []


async def test_no_encoded_answer_is_unpacked() -> None:
    packed = gzip.compress(bytes(64 << 20))
    with serving(lambda h: reply(h, 200, packed, Content_Encoding="gzip")) as (url, asked):
        assert "encoded as 'gzip'" in await reason(url)
    assert set(asked) == {"identity"}


async def test_an_answer_beyond_the_bound_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "MAX_ANSWER", 1000)
    with serving(lambda h: reply(h, 200, b" " * 2000)) as (url, _):
        assert "more than 1000 bytes" in await reason(url)


async def test_an_answer_that_drips_holds_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte comes in time, the answer never does."""
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)
    ended = Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000000")
        handler.end_headers()
        with suppress(OSError):
            while not ended.wait(0.05):
                handler.wfile.write(b" ")

    with serving(drip) as (url, _):
        try:
            assert "not answered within 0.5 s" in await reason(url)
        finally:
            ended.set()


@pytest.mark.parametrize(
    ("part", "drop"),
    [
        (b"HTTP/1.1 200 OK ", b"a"),
        (b"HTTP/1.1 200 OK\r\nA: ", b"a"),
        (b"HTTP/1.1 200 OK\r\n", b"A: b\r\n"),
    ],
    ids=["status line", "one header", "headers"],
)
async def test_a_head_that_drips_holds_no_thread(
    part: bytes, drop: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "ANSWER_SECONDS", 0.5)
    ended = Event()

    def drip(handler: BaseHTTPRequestHandler) -> None:
        with suppress(OSError):
            handler.wfile.write(part)
            while not ended.wait(0.05):
                handler.wfile.write(drop)

    with serving(drip) as (url, _):
        try:
            assert "no head of an answer within 0.5 s" in await reason(url)
        finally:
            ended.set()


@pytest.mark.parametrize("row", [b"{}", b"[]", b'{"metric":{},"value":[1,"1"]}'])
async def test_an_answer_of_too_many_values_is_not_parsed(
    row: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "MAX_VALUES", 1000)
    body = b'{"data":{"result":[' + b",".join([row] * 1000) + b"]}}"
    with serving(lambda handler: reply(handler, 200, body)) as (url, _):
        assert "more than 1000 values" in await reason(url)


@pytest.mark.invariant(14)
async def test_of_a_shared_servers_rows_only_our_pods_are_kept() -> None:
    """3,000 pods of others in every answer; no collection of garbage meets them, which would stop
    the event loop for longer than they take to be parsed.
    """

    def row(pod: str) -> dict[str, object]:
        return {"metric": {**KEY._asdict(), "pod": pod}, "value": [1, "1"]}

    everything = vector([*(row(f"p{n}" + "x" * 80) for n in range(3000)), row("gw")])
    the_time = vector([{"metric": {}, "value": [1, "1"]}])
    met: list[int] = []

    def note(phase: str, _info: object) -> None:
        if phase == "start":
            met.append(sum(isinstance(o, dict) and "metric" in o for o in gc.get_objects()))

    def answer(handler: BaseHTTPRequestHandler) -> None:
        reply(handler, 200, the_time if "vector" in handler.path else everything)

    with serving(answer) as (url, _):
        series = registry.series()
        source = PrometheusSource(
            PrometheusSettings(url, series, query_timeout=60, round_timeout=60)
        )
        gc.callbacks.append(note)
        try:
            (found,) = (await source.sample({KEY: LiveInstances(frozenset({"gw"}))})).values()
            gc.collect()
        finally:
            gc.callbacks.remove(note)
        await source.close()
    assert isinstance(found, ScenarioSample)
    assert found.windows[0].offered == 1
    assert found.live == 1 and found.missing == ()
    assert met and max(met) < 100


def vector(rows: list[dict[str, object]]) -> bytes:
    data = {"resultType": "vector", "result": rows}
    return json.dumps({"status": "success", "data": data}).encode()
