"""Ejection as sequences of what becomes of requests, and what each sequence leads to."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.forwarding.ejection import Health
from pdserve.forwarding.ranking import NEVER

START = 100.0
WELL, HALF_OPEN = 0.0, 0.0
"""Seconds until a request may go there."""
SEQUENCES: list[tuple[str, str, bool, float]] = [
    ("two 5xx", "status status", False, WELL),
    ("three 5xx", "status status status", True, 0.5),
    ("three time-outs", "timeout timeout timeout", True, 0.5),
    ("an answer between them", "status status ok status status", False, WELL),
    ("no connection", "connect", True, 0.5),
    ("a lost connection lets one request try at once", "lost", True, HALF_OPEN),
    ("many lost together are one", "lost lost lost lost", True, HALF_OPEN),
    ("while one tries no other does", "lost send", True, NEVER),
    ("it was cut and told nothing", "lost send cut", True, HALF_OPEN),
    ("it failed, however", "lost send status", True, 0.5),
    ("it was lost too", "lost send lost", True, 0.5),
    ("it was answered", "lost send ok", False, WELL),
    ("the next loss is a first one again", "lost send ok lost", True, HALF_OPEN),
    ("failures of others change nothing", "connect lost connect status", True, 0.5),
    ("each failed try makes it longer", "connect send connect send status", True, 2.0),
    ("never above ten seconds", "connect" + " send connect" * 9, True, 10.0),
    ("an answer makes the next one short again", "connect send connect ok connect", True, 0.5),
    ("an answer forgets failures", "status status ok status", False, WELL),
    ("requests that only run count for nothing", "send send send status", False, WELL),
]


@pytest.mark.parametrize(
    ("events", "ejected", "seconds"), [s[1:] for s in SEQUENCES], ids=[s[0] for s in SEQUENCES]
)
def test_what_a_sequence_of_answers_leads_to(events: str, ejected: bool, seconds: float) -> None:
    health, now = Health(), START
    for event in events.split():
        now = _happens(health, event, now)
    assert health.ejected is ejected
    assert health.next_try(now) - now == pytest.approx(seconds)


def test_once_its_time_has_come_it_may_be_tried_at_any_later_time() -> None:
    health = Health()
    health.failure("connect", START)
    assert [health.next_try(t) for t in (START, START + 0.5, START + 9)] == [
        START + 0.5,
        START + 0.5,
        START + 9,
    ]
    assert health.ejected, "until a request succeeds"


def _happens(health: Health, event: Any, now: float) -> float:
    """The time afterwards: a request is sent once it may be."""
    if event == "send":
        later = health.next_try(now)
        health.attempt()
        return later
    if event == "ok":
        health.success()
    elif event == "cut":
        health.abandon()
    else:
        health.failure(event, now)
    return now
