"""The demo's judgement of an upgrade that is taken back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from localcluster.demo.upgrade import SECONDS, Undone, schedule, upgrade_line
from localcluster.demo.watch import Sight, Watch
from pdserve.cli.load import Sample

GOOD = Sample(0, "chat", "m", 1.0, status=200)


def seen(samples: list[Sample], decode_ready: int = 1, over_at: float = 20.0) -> Undone:
    sights = [Sight(0.0, 2, 1, 2, 1), Sight(5.0, 2, 1, 4, decode_ready), Sight(9.0, 2, 1, 2, 1)]
    return Undone(samples, Watch(0.0, sights), 8.0, 6.0, over_at)


@pytest.mark.parametrize(
    ("what", "ok"),
    [
        (seen([GOOD]), True),
        (seen([GOOD, replace(GOOD, status=503, error="no capacity")]), False),
        (seen([GOOD], decode_ready=0), False),
        (seen([GOOD], over_at=0.5), False),
        (seen([]), False),
    ],
    ids=["no client saw it", "a request failed", "a role was missing", "none came in time", "none"],
)
def test_the_claim_holds_only_where_nothing_failed(what: Undone, ok: bool) -> None:
    assert upgrade_line(what).ok is ok


def test_the_line_names_a_failure() -> None:
    failed = replace(GOOD, status=503, error="no capacity")
    assert "1 of 2 requests failed" in upgrade_line(seen([GOOD, failed])).measured
    assert "503 no capacity" in upgrade_line(seen([GOOD, failed])).measured


def test_both_scenarios_get_requests_all_the_time() -> None:
    planned = schedule()
    assert {p.ask.label for p in planned} == {"chat", "search"}
    assert planned == sorted(planned, key=lambda p: p.at)
    assert SECONDS - 5 < planned[-1].at < SECONDS
