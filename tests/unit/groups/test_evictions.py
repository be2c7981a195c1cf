"""What evictions must leave of each P/D group, and for whom stand-ins are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import fabric
from tests.support.group_world import wanted
from tests.support.instances import observed

from pdserve.groups import types as t
from pdserve.groups.instances import InstanceObs
from pdserve.groups.plan import plan
from pdserve.groups.routable import endpoint
from pdserve.terms import Role
from pdserve.wire.peers import Peer, PeerTable

NOW = 1000.0
DEADLINE, DRAIN = 900.0, 60.0
OPEN = "p1 a  n1:8 n2:8 n3:8"
CLOSED = "p1 a  n1:8!Unschedulable n2:8 n3:8"
TWO = "p1 a  n1:8!Unschedulable n2:8!Tainted n3:8"
FULL = "p1 a  n1:8!Unschedulable n2:0/8 n3:0/8"
NOWHERE = "p1 a  n1:8!Unschedulable n2:8!Unschedulable n3:0/8"


def instances(group: int, text: str) -> list[InstanceObs]:
    """`P:n1 d:n2 ~D:n3 D:n2>D0`: lower case starts, `~` is being deleted, `>` stands in for."""
    found: list[InstanceObs] = []
    for k, part in enumerate(text.split()):
        going, part = part.startswith("~"), part.removeprefix("~")
        part, _, former = part.partition(">")
        letter, node = part.split(":")
        role: Role = "prefill" if letter in "Pp" else "decode"
        name = f"shop-chat-{group}-{letter.lower()}{k}-aaaaaa"
        up = letter.isupper()
        found.append(
            observed(
                name, uid=f"{group}{role[0].upper()}{k}", slot=name.rpartition("-")[0],
                role=role, group_index=group, revision="r1", node=node, created=0.0,
                pod_ip=f"10.0.{group}.{k}", bound=True, running=True, container_id=name, ready=up,
                linked_container=name if up else None, ever_linked=up, terminating=going,
                replaces=f"{group}{former}" if former else None,
            )
        )  # fmt: skip
    return found


def planned(
    tree: str, *groups: str, since: Mapping[int, float] | None = None, **changes: Any
) -> t.Plan:
    """The plan for these groups; `since`: seconds for which they have members on closed nodes.

    `outdated`: another revision is wanted. `silent`: a node of which nothing is heard. `signals`:
    when taints were seen first. `unrouted`: by uid, those that gateways do not know.
    """
    outdated, silent = changes.pop("outdated", False), changes.pop("silent", "")
    ends = {"end_seconds": changes.pop("end_seconds")} if "end_seconds" in changes else {}
    signals, unrouted = changes.pop("signals", {}), changes.pop("unrouted", ())
    members = [
        replace(i, silent=i.node == silent) for k, text in enumerate(groups)
        for i in instances(k, text)
    ]  # fmt: skip
    tables = {
        k: PeerTable(
            f"shop-chat-{k}",
            1,
            tuple(
                Peer(i.name, i.role, endpoint(i.pod_ip or ""), "", "r1")
                for i in members
                if i.group_index == k
            ),
        )
        for k in range(len(groups))
    }
    most = max(groups, key=len).split()
    counts = f"{sum(p[-4] in 'Pp' for p in most)}P{sum(p[-4] in 'Dd' for p in most)}D"
    target = replace(
        wanted(str(changes.pop("counts", counts)), len(groups), devices=1),
        revision="r1", drain_seconds=DRAIN, **changes,
    )  # fmt: skip
    budgets = {k: t.DisruptionBudget(9, NOW - ago) for k, ago in (since or {}).items()}
    routed = frozenset(i.name for i in members if i.ready and i.uid not in unrouted)
    seen = t.Observation(
        replace(target, revision="r2") if outdated else target, tuple(members), tables, {}, {}, (),
        routed, NOW, budgets=budgets, former={"r1": target}, signals_seen=signals,
        has_routes=bool(unrouted),
    )  # fmt: skip
    return plan(seen, fabric(tree, **ends))


def least(made: t.Plan) -> list[int]:
    return [made.budgets[k].least for k in sorted(made.budgets)]


def stand_ins(made: t.Plan) -> list[tuple[str, str]]:
    """What each stands in for, and where."""
    found = [a for a in made.actions if isinstance(a, t.CreateInstance) and a.stands_in]
    return [(str(a.pod.replaces), a.pod.node) for a in found]


CASES = [
    ("open nodes keep all", OPEN, ("P:n1 D:n1",), {}, [2]),
    ("also what starts", OPEN, ("P:n1 d:n1",), {}, [2]),
    ("what is being deleted does not count", OPEN, ("P:n1 D:n1 ~D:n2",), {}, [2]),
    ("the last group is held", CLOSED, ("P:n1 D:n1",), {}, [2]),
    ("also where one role is closed", CLOSED, ("P:n1 D:n2",), {}, [2]),
    ("what is open serves", CLOSED, ("P:n1 D:n1 P:n2 D:n2",), {}, [2]),
    ("once all of it does", CLOSED, ("P:n1 D:n1 P:n2 D:n2 d:n2",), {}, [5]),
    ("stand-ins serve", CLOSED, ("P:n1 D:n1 P:n2>P0 D:n3>D1",), {}, [2]),
    ("one of two does not", CLOSED, ("P:n1 D:n1 P:n2>P0 d:n3>D1",), {}, [4]),
    ("another group serves", CLOSED, ("P:n1 D:n1", "P:n2 D:n2"), {}, [0, 2]),
    ("though its own substitutes start", CLOSED, ("~P:n1 D:n1 p:n2", "P:n2 D:n2"), {}, [0, 2]),
    (
        "another group comes back first",
        CLOSED, ("P:n1 D:n1", "P:n2 d:n2", "P:n3 D:n3"), {}, [2, 2, 2],
    ),
    ("one group after the other", TWO, ("P:n1 D:n1", "P:n2 D:n2", "P:n3 D:n3"), {}, [0, 2, 2]),
    (
        "until no eviction of the first is seen",
        TWO, ("P:n1 D:n1", "P:n2 D:n2", "P:n3 D:n3"), {0: 61, 1: 1}, [0, 0, 2],
    ),
    (
        "the one closed first goes first",
        TWO, ("P:n2 D:n2", "P:n1 D:n1", "P:n3 D:n3"), {1: 5}, [2, 0, 2],
    ),
    ("no group is on open nodes", TWO, ("P:n1 D:n1", "P:n2 D:n2"), {}, [2, 2]),
    ("one got out", TWO, ("P:n1 D:n1 P:n3>P0 D:n3>D1", "P:n2 D:n2"), {}, [2, 0]),
    ("they are made just now: held for longer", CLOSED, ("P:n1 D:n1",), {0: DRAIN}, [2]),
    ("no room: held for drainSeconds", FULL, ("P:n1 D:n1",), {0: DRAIN - 1}, [2]),
    ("no room: and then let go", FULL, ("P:n1 D:n1",), {0: DRAIN}, [0]),
    (
        "no room: one more after as long",
        NOWHERE, ("P:n1 D:n1", "P:n2 D:n2"), {0: DRAIN, 1: DRAIN}, [0, 2],
    ),
    (
        "no room: both",
        NOWHERE, ("P:n1 D:n1", "P:n2 D:n2"), {0: 2 * DRAIN, 1: 2 * DRAIN}, [0, 0],
    ),
    ("they start: held for longer", CLOSED, ("P:n1 D:n1 p:n2>P0 d:n2>D1",), {0: DEADLINE - 1}, [4]),
    ("they start: not for ever", CLOSED, ("P:n1 D:n1 p:n2>P0 d:n2>D1",), {0: DEADLINE}, [0]),
    ("what never served holds nothing up", CLOSED, ("p:n1 d:n1",), {}, [0]),
    ("a node that is NotReady is not closed", "p1 a  n1:8!NotReady n2:8", ("P:n1 D:n2",), {}, [2]),
    ("a node that left the domain is", "p1 a  n2:8", ("P:n1 D:n2 P:n2",), {}, [2]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "groups", "since", "want"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_what_evictions_must_leave(
    tree: str, groups: tuple[str, ...], since: dict[int, float], want: list[int]
) -> None:
    """`minAvailable` by group: of Ready members, as the disruption controller counts."""
    assert least(planned(tree, *groups, since=since)) == want


def test_since_when_is_kept_while_nodes_are_closed() -> None:
    assert planned(OPEN, "P:n1 D:n1", since={0: 5}).budgets[0].since is None
    assert planned(CLOSED, "P:n1 D:n1").budgets[0].since == NOW
    assert planned(CLOSED, "P:n1 D:n1", since={0: 5}).budgets[0].since == NOW - 5
    later = planned(CLOSED, "P:n1 D:n1", since={0: -3600})
    assert later.budgets[0].since == NOW, "a clock that was set back"


STAND_INS = [
    ("none on open nodes", OPEN, ("P:n1 D:n1",), []),
    ("one for each closed member", CLOSED, ("P:n1 D:n1",), [("0P0", "n2"), ("0D1", "n3")]),
    ("only for those", CLOSED, ("P:n1 D:n2",), [("0P0", "n3")]),
    ("as far as there is room", "p1 a  n1:8!Unschedulable n2:1", ("P:n1 D:n1",), [("0P0", "n2")]),
    ("once", CLOSED, ("P:n1 D:n1 p:n2>P0",), [("0D1", "n3")]),
    ("none where what is open serves", CLOSED, ("P:n1 D:n1 P:n2 D:n2",), []),
    ("none where another group does", CLOSED, ("P:n1 D:n1", "P:n2 D:n2"), []),
    ("none where one comes back", CLOSED, ("P:n1 D:n1", "P:n2 d:n2"), []),
    ("for one of two groups", TWO, ("P:n1 D:n1", "P:n2 D:n2"), [("0P0", "n3"), ("0D1", "n3")]),
    ("for a stand-in too", TWO, ("P:n1 D:n3 P:n2>P0",), [("0P2", "n3")]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("tree", "groups", "want"), [c[1:] for c in STAND_INS], ids=[c[0] for c in STAND_INS]
)
def test_who_gets_a_stand_in(
    tree: str, groups: tuple[str, ...], want: list[tuple[str, str]]
) -> None:
    assert stand_ins(planned(tree, *groups)) == want


def test_a_stand_in_is_no_growth_and_its_pair_is_no_surplus() -> None:
    """Nothing else is made or given up while two of one slot are there."""
    made = planned(CLOSED, "P:n1 D:n1 P:n2>P0 D:n3>D1", counts="1P1D")
    assert not [a for a in made.actions if isinstance(a, t.CreateInstance | t.BeginDrain)]
    opened = planned(OPEN, "P:n1 D:n1 P:n2>P0 D:n3>D1", counts="1P1D")
    assert len([a for a in opened.actions if isinstance(a, t.BeginDrain)]) == 2
    gone = planned(CLOSED, "~P:n1 ~D:n1 P:n2>P0 D:n3>D1", counts="1P1D")
    assert not [a for a in gone.actions if isinstance(a, t.CreateInstance | t.BeginDrain)]


def test_stand_ins_stay_when_the_closed_node_falls_silent() -> None:
    """It may have lost its instances (seed 610488 of the simulation)."""
    tree = CLOSED.replace("!Unschedulable", "!Unschedulable!NotReady")
    made = planned(tree, "P:n1 D:n1 P:n2>P0 D:n3>D1", counts="1P1D", silent="n1")
    assert not [a for a in made.actions if isinstance(a, t.CreateInstance | t.BeginDrain)]
    opened = planned(tree, "P:n1 P:n2>P0 D:n3", counts="2P1D", silent="n1")
    assert not [a for a in opened.actions if isinstance(a, t.CreateInstance | t.BeginDrain)], (
        "two of one slot that were kept as two are two (seed 703010 of the simulation)"
    )


@pytest.mark.parametrize(
    ("group", "counts", "silent", "drained"),
    [
        ("P:n1 P:n2 D:n1", "1P1D", "n2", ["p1"]),
        ("P:n2 P:n1 D:n1", "1P1D", "n2", ["p0"]),
        ("P:n2 P:n1 P:n1 D:n1", "2P1D", "n2", ["p0"]),
        ("P:n2 P:n2 P:n1 P:n1 D:n1", "1P1D", "n2", ["p0", "p1", "p3"]),
        ("P:n1 D:n1 D:n2", "1P1D", "n2", ["d2"]),
    ],
)
def test_a_shrink_leans_on_no_instance_of_whose_node_nothing_is_heard(
    group: str, counts: str, silent: str, drained: list[str]
) -> None:
    """It may be lost (seed 711880 of the simulation)."""
    tree = "p1 a  n1:0/8 n2:0/8!NotReady"
    made = planned(tree, group, counts=counts, silent=silent)
    gone = sorted(a.name.split("-")[3] for a in made.actions if isinstance(a, t.BeginDrain))
    assert gone == drained


@pytest.mark.parametrize("paused", [False, True])
def test_stand_ins_of_an_outdated_group_end_when_its_nodes_open(paused: bool) -> None:
    """Their devices are what its successor waits for (seed 400726 of the simulation)."""
    tree = "p1 a  n1:0/8 n2:0/8 n3:0/8"
    opened = planned(
        tree, "P:n1 D:n1 P:n2>P0 d:n3>D1", counts="1P1D", outdated=True, paused=paused
    )  # fmt: skip
    gone = [a.name for a in opened.actions if isinstance(a, t.BeginDrain | t.DeletePod)]
    assert gone == ([] if paused else ["shop-chat-0-p2-aaaaaa", "shop-chat-0-d3-aaaaaa"])


def test_a_count_that_falls_meanwhile_is_kept_to() -> None:
    made = planned(CLOSED, "P:n1 D:n2 P:n2 P:n3>P0", counts="1P1D")
    drained = [a.name for a in made.actions if isinstance(a, t.BeginDrain)]
    assert len(drained) == 1 and drained[0] != "shop-chat-0-p0-aaaaaa"


def test_no_stand_ins_while_changes_are_paused() -> None:
    assert stand_ins(planned(CLOSED, "P:n1 D:n1", paused=True)) == []


def test_it_says_what_is_held_and_what_goes_without() -> None:
    def told(made: t.Plan) -> tuple[str, str]:
        found = next(c for c in made.conditions if c.type == "Progressing")
        return found.reason, found.message

    assert told(planned(FULL, "P:n1 D:n1")) == (
        "EvictionHeld",
        "group 0 keeps its instances on n1 until others stand in for them, at most until "
        "1970-01-01T00:17:40+00:00: it alone serves",
    )
    assert told(planned(FULL, "P:n1 D:n1", since={0: DRAIN})) == (
        "EvictionUncovered",
        "group 0 alone serves; its instances on n1 may be evicted, though after 60 s none stands "
        "in for them",
    )
    two = planned(TWO, "P:n1 D:n1", "P:n2 D:n2", "P:n3 D:n3")
    assert told(two) == (
        "EvictionHeld", "group 1 keeps its instances on n2 while those of group 0 go"
    )  # fmt: skip
    assert two.requeue_after is not None and two.requeue_after <= 60
