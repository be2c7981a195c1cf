"""`PrometheusSource` where the server dies, does not answer, or is no Prometheus."""

from __future__ import annotations

import socket
import time
from contextlib import closing
from pathlib import Path

import pytest
from tests.support.prometheus import (
    Exposition,
    eventually,
    running_prometheus,
)
from tests.support.prometheus_pods import WINDOW, ask, source
from tests.support.ratio_values import decision_input

from pdserve.engines import registry
from pdserve.ratio.decide import decide
from pdserve.ratio.types import Reason, ScenarioSample, Unknown
from pdserve.telemetry.prometheus import PrometheusSettings, PrometheusSource


@pytest.mark.invariant(6)
async def test_a_server_that_dies_is_unknown_left_alone_and_found_again(tmp_path: Path) -> None:
    now = [0.0]
    with running_prometheus(tmp_path, []) as server:
        settings = PrometheusSettings(server.url, registry.series(), window=WINDOW)
        asked = PrometheusSource(settings, clock=lambda: now[0])
        await eventually(lambda: ask(asked), lambda s: isinstance(s, ScenarioSample))
        server.stop()
        for _ in range(3):
            got = await ask(asked)
            assert isinstance(got, Unknown)
            assert "ConnectionError" in got.reason
        refused = await ask(asked)
        assert isinstance(refused, Unknown)
        assert "next try in 5 s" in refused.reason
        decision = decide(decision_input(sample=refused))
        assert decision.reason is Reason.HOLD_NO_DATA
        assert server.url in decision.message
    with running_prometheus(tmp_path, [], server.host):
        assert isinstance(await ask(asked), Unknown), "still left alone"
        now[0] = 6.0
        assert isinstance(await ask(asked), ScenarioSample)
    await asked.close()


async def test_a_server_that_never_answers_costs_one_deadline() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(8)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        asked = source(url, query_timeout=30.0, round_timeout=0.3, threads=1)
        started = time.monotonic()
        got = await ask(asked)
        assert isinstance(got, Unknown)
        assert "no answer within 0.3 s" in got.reason
        again = await ask(asked)
        assert isinstance(again, Unknown)
        assert "still hang" in again.reason
        assert time.monotonic() - started < 25.0, "not the 30 s of a query"
        await asked.close()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("<html>hello</html>", "not a Prometheus answer"),
        ('{"data": {"result": "?"}}', "not a time"),
        ('{"data": {"result": [{"value": [1, "NaN"]}]}}', "not a time"),
        (None, "server refused"),
    ],
)
async def test_something_that_is_no_prometheus_is_unknown(text: str | None, word: str) -> None:
    with closing(Exposition(lambda: text)) as other:
        asked = source(f"http://127.0.0.1:{other.port}")
        got = await ask(asked)
        assert isinstance(got, Unknown)
        assert word in got.reason
        await asked.close()
