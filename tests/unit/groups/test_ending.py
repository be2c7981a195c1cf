"""Instances leave a node before its announced end, and no sooner than they have to."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import SPOT, draw, fabric
from tests.unit.groups.test_evictions import DRAIN, NOW, planned, stand_ins

from pdserve.groups import types as t
from pdserve.groups.evictions import HELD
from pdserve.groups.health import HealthLimits, classify
from pdserve.topology import NodeView, Taint, build_fabric, node_view, pod_view
from pdserve.topology.notices import OUT_OF_SERVICE, EndSignal, Signal, announced_end, signals_of

ENDS = "p1 a  n1:8!Ending n2:8 n3:8"
FULL = "p1 a  n1:8!Ending n2:0/8 n3:0/8"
PAIR = "P:n1 D:n2"
FOLLOWED = "P:n1 D:n2 P:n3>P0"


def drained(made: t.Plan) -> list[str]:
    """Uids of the instances whose drain this plan begins."""
    return [a.uid for a in made.actions if isinstance(a, t.BeginDrain)]


def at(seconds: float) -> dict[tuple[str, str], float]:
    """The notice of n1 came so long ago."""
    return {("n1", SPOT): NOW - seconds}


CASES = [
    ("a stand-in is created at once", ENDS, (PAIR,), {}, [("0P0", "n3")], []),
    ("though the others serve", ENDS, ("P:n1 P:n2 D:n2",), {}, [("0P0", "n3")], []),
    ("and another group", ENDS, (PAIR, "P:n2 D:n3"), {}, [("0P0", "n2")], []),
    ("and changes are paused", ENDS, (PAIR,), {"paused": True}, [("0P0", "n3")], []),
    ("once", ENDS, ("P:n1 D:n2 p:n3>P0",), {}, [], []),
    ("it starts: the first one serves on", ENDS, ("P:n1 D:n2 p:n3>P0",), at(14), [], []),
    ("until half of a short notice is over", ENDS, ("P:n1 D:n2 p:n3>P0",), at(15), [], ["0P0"]),
    ("it serves: the first one drains", ENDS, (FOLLOWED,), {}, [], ["0P0"]),
    ("once gateways know it", ENDS, (FOLLOWED,), {"unrouted": ("0P2",)}, [], []),
    ("no room: it serves on", FULL, (PAIR,), at(14), [], []),
    ("no room: it drains in time", FULL, (PAIR,), at(15), [], ["0P0"]),
    ("a notice of long ago", FULL, (PAIR,), at(1e9), [], ["0P0"]),
    ("a notice of the future, by a clock that was set", FULL, (PAIR,), at(-1e9), [], []),
    ("an outdated group keeps its counts too", ENDS, (PAIR,), {"outdated": True}, None, []),
    ("nothing ends", ENDS.replace("!Ending", ""), (PAIR,), {}, [], []),
    ("a silent node that ends", ENDS, (FOLLOWED,), {"silent": "n1"}, [], ["0P0"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "groups", "changes", "made", "left"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_who_gets_a_stand_in_and_who_drains(
    tree: str,
    groups: tuple[str, ...],
    changes: dict[Any, Any],
    made: list[tuple[str, str]] | None,
    left: list[str],
) -> None:
    signals = {k: v for k, v in changes.items() if isinstance(k, tuple)}
    others = {k: v for k, v in changes.items() if isinstance(k, str)}
    found = planned(tree, *groups, signals=signals, **others)
    if made is not None:
        assert stand_ins(found) == made
    assert drained(found) == left


def test_the_plan_comes_back_when_the_last_moment_has_come() -> None:
    found = planned(FULL, PAIR, signals=at(5))
    assert found.requeue_after is not None and found.requeue_after <= 10.0
    assert any(c.reason == "NodeEnds" for c in found.conditions)


def test_a_notice_longer_than_two_drains_leaves_time_for_one_drain() -> None:
    tree = fabric(FULL)
    assert tree.end_of("n1") is not None
    found = planned(FULL, PAIR, signals=at(5), end_seconds=1000.0)
    assert drained(found) == [] and (found.requeue_after or 0) <= 995.0 - DRAIN
    assert drained(planned(FULL, PAIR, signals=at(1000.0 - DRAIN), end_seconds=1000.0)) == ["0P0"]


def test_nothing_is_held_for_ever_beside_it() -> None:
    """An eviction by a tool of the cloud is held as for any closed node, and said."""
    found = planned(ENDS, PAIR)
    assert not any(c.reason == HELD for c in found.conditions), "the end is what is said"
    assert any("alone serves" in r for r in found.reasons)


def test_no_new_instance_where_a_node_ends_or_is_degraded() -> None:
    tree = fabric(ENDS)
    blocked = tree.blocked("n1")
    assert blocked is not None and blocked.kind == "ending" and blocked.may_empty
    (view,) = draw("p1 a n1:8")
    for name, kind in (("KernelDeadlock", "degraded"), ("Harmless", None)):
        signal = Signal("condition", name, None)
        spec = tree.spec
        found = build_fabric(spec, [replace(view, signals=(signal,))]).blocked("n1")
        assert (found.kind if found else None) == kind
        assert found is None or not found.may_empty, "what runs stays"


def test_out_of_service_is_lost_at_once() -> None:
    pod = pod_view({"metadata": {"name": "p", "uid": "u"}, "spec": {"nodeName": "n1"}})
    node = NodeView("n1", ready=True)
    assert classify(pod, node, 10.0, HealthLimits()).fault is None
    shut = replace(node, taints=(Taint(OUT_OF_SERVICE, "nodeshutdown", "NoExecute"),))
    assert classify(pod, shut, 10.0, HealthLimits()).fault == "NodeLost"


def raw(annotation: object = None, taints: object = (), conditions: object = ()) -> NodeView:
    meta: dict[str, Any] = {"name": "n1"}
    if annotation is not None:
        meta["annotations"] = {"pdserve.io/ends-at": annotation}
    return node_view(
        {"metadata": meta, "spec": {"taints": taints}, "status": {"conditions": conditions}}
    )


@pytest.mark.parametrize(
    "told", ["", "soon", "0", "2026-13-01T00:00:00Z", "x" * 10_000, 5, [], "\x00"]
)
def test_an_annotation_that_is_no_time_is_reported_and_ends_nothing(told: object) -> None:
    view = raw(told)
    assert view.ends_at is None and len(view.problems) == 1
    assert len(view.problems[0]) < 400


def test_what_an_annotation_says_counts_before_what_is_usual() -> None:
    view = raw("2026-01-01T00:00:30Z", [{"key": SPOT, "effect": "NoSchedule"}])
    end = announced_end("n1", view.signals, view.ends_at, (EndSignal("taint", SPOT, 30),))
    assert end is not None and end.when(0.0)[1] == 1767225630.0
    assert announced_end("n1", (), 5.0, ()) is not None
    assert announced_end("n1", view.signals, None, ()) is None


def test_a_time_of_the_signal_counts_unless_it_lies_ahead() -> None:
    notice = (EndSignal("condition", "PreemptScheduled", 30),)
    early, late = (
        announced_end("n1", (Signal("condition", "PreemptScheduled", since),), None, notice)
        for since in (50.0, 500.0)
    )
    assert early is not None and early.when(100.0) == (50.0, 80.0)
    assert late is not None and late.when(100.0) == (100.0, 130.0)


@pytest.mark.parametrize(
    ("taints", "conditions", "want"),
    [
        ([{"key": "node.kubernetes.io/not-ready"}], [], []),
        ([], [{"type": "Ready", "status": "True"}], []),
        ([], [{"type": "PreemptScheduled", "status": "False"}], []),
        ([], [{"type": "PreemptScheduled", "status": True}], []),
        ([{"key": "a/b", "timeAdded": "odd"}], [{"type": "X", "status": "True"}], ["X", "a/b"]),
        ([{}], [{"status": "True"}], []),
        ([{"key": f"k/{n:03}"} for n in range(500)], [], [f"k/{n:03}" for n in range(32)]),
    ],
)
def test_signals_are_what_kubernetes_itself_does_not_set(
    taints: list[dict[str, Any]], conditions: list[dict[str, Any]], want: list[str]
) -> None:
    assert [s.name for s in signals_of(taints, conditions)] == want
