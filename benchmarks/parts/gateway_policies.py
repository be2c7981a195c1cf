"""What forwarding asks of the prefills, in virtual time, beside the policies of other projects.

Sixteen gateways get the requests of one service: each reads in replies which slots are free, and
the others may have taken them before it asks. The floors are those that docs/testing.md promises
for our own policy; the others stand beside it. See `tests.support.many_gateways` for what they are.
"""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.harness import Progress, Row
from tests.support.many_gateways import (
    MIGRATIONS,
    QUEUE,
    ExcludeAndRetry,
    OnDemand,
    PairWalk,
    Policy,
    run,
)

GATEWAYS = 16
MOST = {0.95: 9.0, 1.2: 12.0}
"""Attempts per offered request, by load."""
GIVEN_UP = 0.01
ALL = [(load, prefills) for load in MOST for prefills in (4, 16, 64)]
OTHERS: dict[str, Policy] = {
    "Kthena's pair walk": PairWalk,
    f"Dynamo's exclude and retry (cap {MIGRATIONS + 1}, queue {QUEUE})": ExcludeAndRetry,
}


def rows(cases: Sequence[tuple[float, int]], seconds: float, say: Progress) -> list[Row]:
    """Two rows for each load and number of prefills, from so many seconds of arrivals."""
    made = []
    for load, prefills in cases:
        ours = run(OnDemand, GATEWAYS, prefills, load, seconds)
        others = {
            name: run(policy, GATEWAYS, prefills, load, seconds) for name, policy in OTHERS.items()
        }
        where = f"load {load:g}, M = {prefills}, {GATEWAYS} gateways"
        say(
            f"{where}: pdserve asks {ours.mean:.1f} times, {ours.most} at most (no cap), "
            f"{ours.served:.1%} begin in time"
        )
        for name, tally in others.items():
            say(
                f"{where}: {name} asks {tally.mean:.1f} times, {tally.served:.1%} begin in time, "
                f"{tally.given_up:.1%} end for want of attempts"
            )
        asked = ", ".join(f"{name} {tally.mean:.1f}" for name, tally in others.items())
        ended = ", ".join(f"{name} {tally.given_up:.3f}" for name, tally in others.items())
        made += [
            Row(
                f"attempts per request, {where}", ours.mean, "attempts",
                f"promised; {asked}", MOST[load], 1.0, "lower", ours.offered,
            ),
            Row(
                f"ended for want of attempts, {where}", ours.given_up, "of all",
                f"promised; {ended}", GIVEN_UP, 1.0, "lower", ours.offered,
            ),
        ]  # fmt: skip
    return made
