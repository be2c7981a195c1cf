"""The way out of an instance: how long its peer table names it, and which group drains first."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.group_world import World, wanted
from tests.unit.groups.test_links_and_routes import instance, table

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.removal import finished
from pdserve.groups.view import GroupView
from pdserve.wire.links import DrainReport

NOW = 1000.0
IDLE = DrainReport(0, 0, 0)
BUSY = DrainReport(0, 1, 0)
"""A KV read of another instance may still run."""


def drains(seconds: float, **more: object) -> dict[str, object]:
    return {"drain_started": NOW - seconds, "ever_linked": True, **more}


OUT = [
    ("a draining one is still routed", drains(10), True, IDLE, False),
    ("not asked yet", drains(10), False, None, False),
    ("KV reads that it serves may run", drains(10), False, BUSY, False),
    ("it is idle", drains(10), False, IDLE, True),
    ("its time is almost over", drains(59.9), False, BUSY, False),
    ("its time is over", drains(60), False, BUSY, True),
    ("its time is over, gateways still know it", drains(60), True, BUSY, False),
    ("it stopped", drains(10, running=False), False, None, True),
    ("it stopped, gateways still know it", drains(10, running=False), True, None, False),
    ("it never was linked", drains(0, ever_linked=False), False, None, True),
    ("it is routed all the same", drains(10, ever_linked=False), True, None, False),
    ("it is faulty", {"fault": "CrashLoop"}, True, None, True),
    ("a user deletes it, its preStop hook runs", {"terminating": True}, False, IDLE, False),
    ("a user deletes it while it drains", drains(60, terminating=True), False, IDLE, False),
    ("a user deleted it", {"terminating": True, "running": False}, True, None, True),
]


@pytest.mark.parametrize(
    ("change", "routed", "report", "want"), [row[1:] for row in OUT], ids=[row[0] for row in OUT]
)
@pytest.mark.invariant(5)
def test_how_long_the_peer_table_names_what_leaves(
    change: dict[str, object], routed: bool, report: DrainReport | None, want: bool
) -> None:
    leaves = instance("p0", **change)
    assert _finished(leaves, [instance("d0")], {"p0": report}, routed=routed) is want


@pytest.mark.parametrize(("named", "want"), [(True, False), (False, True)])
@pytest.mark.invariant(5)
def test_a_decode_outlasts_the_prefills_of_its_group(named: bool, want: bool) -> None:
    """Idle or not: a request that is still in prefill needs it."""
    decode = instance("d0", **drains(10))
    prefill = instance("p0", **drains(10)) if named else instance("p0", fault="PodFailed")
    assert _finished(decode, [prefill], {"d0": IDLE}) is want


def _finished(
    leaves: InstanceObs,
    others: list[InstanceObs],
    reports: dict[str, DrainReport | None],
    *,
    routed: bool = False,
) -> bool:
    members = (leaves, *others)
    there = {name: report for name, report in reports.items() if report is not None}
    known = frozenset({leaves.name} if routed else ())
    tab = table(*members)
    seen = t.Observation(wanted("1P1D"), members, {0: tab}, {}, there, (), known, NOW)
    return finished(GroupView(0, members, tab), leaves, seen)


def test_of_groups_that_serve_one_whose_drain_has_begun_goes_first() -> None:
    """Else two of them would serve with less than they should."""
    w = World("p1 a  n1:8 n2:8 n3:8 n4:8 n5:8 n6:8", wanted("2P1D", 2))
    w.settle()
    prefills = [p for p in w.pods.values() if p.new.group_index == 0 and p.new.role == "prefill"]
    prefills[0].drain_started = w.now
    w.want(lambda x: replace(x, replicas=1))
    drained = {a.name for a in w.operator().actions if isinstance(a, t.BeginDrain)}
    assert {w.pods[name].new.group_index for name in drained} == {0}


# --- which revision a group is of -----------------------------------------------------------------

TWO = [
    ("one serves", {"p0": ("r1", True), "p1": ("r2", False), "p2": ("r2", False)}, "r1"),
    ("more members", {"p0": ("r1", False), "p1": ("r2", False), "d0": ("r2", False)}, "r2"),
    ("more that serve", {"p0": ("r1", True), "p1": ("r2", True), "d0": ("r2", True)}, "r2"),
    ("as many: the smaller name", {"p0": ("r2", True), "p1": ("r1", True)}, "r1"),
]


@pytest.mark.parametrize(("members", "want"), [row[1:] for row in TWO], ids=[row[0] for row in TWO])
def test_of_two_revisions_the_bigger_is_the_groups(
    members: dict[str, tuple[str, bool]], want: str
) -> None:
    found = tuple(instance(n, revision=r, ready=ready) for n, (r, ready) in members.items())
    assert GroupView(0, found, table(*found)).revision == want
