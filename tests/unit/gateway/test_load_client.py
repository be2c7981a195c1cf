"""The open-loop load client against a gateway over stub engines."""

import random

import pytest
from tests.support.gateway_rig import Rig

from pdserve.cli.load import (
    Ask,
    LoadOptions,
    Planned,
    merge,
    percentile,
    poisson,
    run_load,
    summary,
)


async def test_samples_say_what_happened(rig: Rig) -> None:
    await rig.one_group(prefills=2)
    rig.engines["d0"].token_seconds = 0.05
    url = f"http://127.0.0.1:{rig.port}"
    schedule = [
        Planned(0.0, Ask("tiny", "x", 5, label="a")),
        Planned(0.01, Ask("tiny", "x", 5, chat=True)),
        Planned(0.02, Ask("tiny", "x", 5, stream=False)),
        Planned(0.03, Ask("nope", "x", 5)),
    ]
    seen: list[int] = []
    samples = await run_load(
        url, schedule, LoadOptions(keep_text=True), on_sample=lambda s: seen.append(s.index)
    )
    assert [s.status for s in samples] == [200, 200, 200, 404]
    assert [s.error for s in samples] == ["", "", "", "model_not_found"]
    assert [s.text for s in samples[:3]] == ["t0 t1 t2 t3 t4 "] * 3
    assert [s.output_tokens for s in samples] == [5, 5, 5, 0]
    assert sorted(seen) == [0, 1, 2, 3]
    first = samples[0]
    assert first.label == "a"
    assert first.ttft is not None
    assert first.handoff is not None
    assert first.tpot is not None
    # A pause between two tokens moves time from one to the next; together they are four tokens'.
    assert 4 * 0.05 <= first.ttft + first.handoff + 3 * first.tpot < first.e2e
    assert summary(samples)["errors"] == {"model_not_found": 1}


async def test_broken_streams_dead_servers_and_limits_are_errors(rig: Rig) -> None:
    await rig.one_group()
    url = f"http://127.0.0.1:{rig.port}"
    rig.engines["d0"].script = ["cut:2"]
    (cut,) = await run_load(url, [Planned(0.0, Ask("tiny", "x", 5))])
    assert (cut.status, cut.error, cut.started_streaming) == (200, "stream_error", True)
    (dead,) = await run_load("http://127.0.0.1:9", [Planned(0.0, Ask("tiny", "x", 5))])
    assert (dead.status, dead.error) == (0, "connection_connect")
    assert "127.0.0.1:9" in dead.detail
    rig.engines["d0"].token_seconds = 5.0
    hurried = LoadOptions(max_in_flight=1, patience=0.1)
    slow = await run_load(url, [Planned(0.0, Ask("tiny", "x", 5)) for _ in range(2)], hurried)
    assert [s.error for s in slow] == ["timeout", "client_limit"]


def test_schedules_are_reproducible_and_ordered() -> None:
    ask = Ask("m", "p", 1)
    one = list(poisson(50, 4, lambda i: ask, random.Random(3)))
    again = list(poisson(50, 4, lambda i: ask, random.Random(3)))
    assert one == again
    assert 150 < len(one) < 250
    late = poisson(5, 1, lambda i: ask, random.Random(4), start=2.0)
    both = merge(one, late)
    assert [p.at for p in both] == sorted(p.at for p in both)


@pytest.mark.parametrize(
    ("values", "share", "want"),
    [([], 0.5, None), ([3.0], 0.99, 3.0), ([1.0, 2.0, 3.0, 4.0], 0.5, 2.0), ([1.0, 2.0], 1.0, 2.0)],
)
def test_percentile(values: list[float], share: float, want: float | None) -> None:
    assert percentile(values, share) == want
