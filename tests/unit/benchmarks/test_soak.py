"""What the soak bench makes of its samples."""

from __future__ import annotations

import pytest
from benchmarks.soak import RESIDENT, SOCKETS, TASKS, Sent, rows

MIB = 2**20


def samples(**late: float) -> list[dict[str, dict[str, float]]]:
    """Forty samples of one process; the last quarter differs by `late`."""
    early = {RESIDENT: 100.0 * MIB, SOCKETS: 30.0, TASKS: 14.0}
    return [{"gateway": {**early, **(late if n >= 30 else {})}} for n in range(40)]


@pytest.mark.parametrize(
    ("late", "failed"),
    [
        ({}, []),
        ({RESIDENT: 101.0 * MIB}, []),
        ({RESIDENT: 103.0 * MIB}, ["resident memory, gateway, last quarter"]),
        ({SOCKETS: 31.0}, ["open descriptors, gateway, last quarter"]),
        ({TASKS: 15.0}, ["tasks, gateway, last quarter"]),
        ({TASKS: 13.0, SOCKETS: 29.0}, []),
    ],
)
def test_what_grows_fails(late: dict[str, float], failed: list[str]) -> None:
    found = rows(samples(**late), Sent(answered=5000))
    assert [row.what for row in found if not row.ok] == failed


@pytest.mark.parametrize(("lost", "ok"), [(0, True), (5, True), (6, False)])
def test_one_in_a_thousand_may_fail(lost: int, ok: bool) -> None:
    first = rows(samples(), Sent(answered=5000 - lost, failures=[b"502"] * lost))[0]
    assert first.ok is ok
