"""Rule: the pods of an instance are one instance, and its worst member is its state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.support.builders import fabric
from tests.support.group_world import wanted
from tests.support.instances import observed

from pdserve.groups import types as t
from pdserve.groups.instances import Fault, InstanceObs
from pdserve.groups.observe import joined
from pdserve.groups.repairs import count_faults
from pdserve.groups.routable import addresses
from pdserve.groups.view import PlanDraft
from pdserve.wire import names

NAME = "shop-chat-0-p0-abc123"
RUNS = {"bound": True, "running": True, "ready": True, "silent": False}


def part(index: int, **values: Any) -> InstanceObs:
    """What one pod shows of an instance of two members that runs."""
    base: dict[str, Any] = {
        "uid": "u0", "slot": "shop-chat-0-p0", "role": "prefill", "group_index": 0,
        "revision": "r1", "node": f"n{index}", "index": index, "size": 2,
        "pod_ip": f"10.0.0.{index}", "container_id": f"c{index}", "linked_container": f"c{index}",
        "created": 100.0 + index, "up_since": 110.0 + index, "linked_since": 120.0 + index,
        "ready_since": 130.0 + index, **RUNS,
    }  # fmt: skip
    made = observed(NAME, **{**base, **values})
    pod = names.member_name(NAME, index)
    return replace(made, members=(replace(made.members[0], pod=pod, uid=f"u{index}"),))


def both(leader: dict[str, Any] | None = None, other: dict[str, Any] | None = None) -> InstanceObs:
    """Both pods together, the other one seen first."""
    (found,) = joined([part(1, **(other or {})), part(0, **(leader or {}))])
    return found


def test_two_pods_are_one_instance_with_one_identity_and_one_endpoint() -> None:
    found = both()
    assert (found.name, found.uid, found.slot) == (NAME, "u0", "shop-chat-0-p0")
    assert [(m.pod, m.uid, m.node) for m in found.members] == [
        (NAME, "u0", "n0"), (f"{NAME}-m1", "u1", "n1"),
    ]  # fmt: skip
    assert (found.node, found.nodes, found.pod_ip) == ("n0", ("n0", "n1"), "10.0.0.0")
    assert addresses(found) == ("http://10.0.0.0:8000", "10.0.0.1:5600")
    assert (found.bound, found.running, found.ready, found.linked) == (True, True, True, True)
    assert found.created == 100.0
    assert (found.up_since, found.linked_since, found.ready_since) == (111.0, 121.0, 131.0)


def test_pods_of_one_member_stay_what_they_are() -> None:
    alone = observed("a-p0-abc123", uid="u", slot="a-p0", role="prefill", group_index=0,
                     revision="r1", node="n1")  # fmt: skip
    assert joined([alone, part(0), part(1)])[0] is alone


WORST = [
    ("one does not run", {"running": False}, {"running": False}),
    ("one is not Ready", {"ready": False, "ready_since": None, "unready_since": 7.0},
     {"ready": False, "ready_since": None, "unready_since": 7.0}),
    ("one is not bound", {"bound": False, "unscheduled": "no"},
     {"bound": False, "unscheduled": "no"}),
    ("one does not answer", {"up_since": None}, {"up_since": None}),
    ("one's node is silent", {"silent": True}, {"silent": True}),
    ("one restarted", {"restarts": 2, "container_id": "new"}, {"restarts": 2, "linked": False}),
    ("one drains", {"drain_started": 9.0}, {"drain_started": 9.0}),
    ("one is being deleted", {"terminating": True}, {"terminating": True, "fault": None}),
    ("one has a deadline", {"recheck_after": 3.0}, {"recheck_after": 3.0}),
    ("one is lost", {"fault": "CrashLoop", "fault_message": "3 times"}, {"fault": "CrashLoop"}),
    ("one was linked once", {"ever_linked": True}, {"ever_linked": True}),
    ("one stands for the group", {"scale_unit": True}, {"scale_unit": True}),
]  # fmt: skip


@pytest.mark.parametrize(("change", "want"), [c[1:] for c in WORST], ids=[c[0] for c in WORST])
@pytest.mark.parametrize("which", ["leader", "other"])
def test_the_worst_member_is_the_state_of_all(
    which: str, change: dict[str, Any], want: dict[str, Any]
) -> None:
    found = both(**{which: change})
    assert {key: getattr(found, key) for key in want} == want


def test_of_two_faults_the_worse_is_reported_with_its_pod() -> None:
    found = both(
        {"fault": "CrashLoop", "fault_message": "3 times"},
        {"fault": "NodeLost", "fault_message": "NotReady for 30 s"},
    )
    assert (found.fault, found.fault_message) == ("NodeLost", f"{NAME}-m1: NotReady for 30 s")


@pytest.mark.parametrize("here", [0, 1])
def test_an_instance_without_one_of_its_pods_is_lost_and_keeps_its_identity(here: int) -> None:
    (found,) = joined([part(here)])
    assert (found.fault, found.fault_message) == ("MemberLost", "1 of its 2 pods are gone")
    assert (found.name, found.uid) == (NAME, "u0")
    assert not (found.bound or found.running or found.ready)
    assert addresses(found) is None
    assert (found.leader is None) == (here == 1)
    assert (found.pod_ip, found.container_id) == (("10.0.0.0", "c0") if here == 0 else (None, None))


def test_one_whose_last_pod_is_being_deleted_leaves_and_is_not_lost() -> None:
    (found,) = joined([part(1, terminating=True)])
    assert (found.fault, found.terminating) == (None, True)


def test_names_of_members_fit_a_label_and_lead_back_to_instance_and_slot() -> None:
    for group in ("shop-chat", "g" * names.MAX_GROUP):
        for members in (1, 2, 16):
            slot = names.slot_name(group, 12, "prefill", 345, members)
            pod = names.member_name(f"{slot}-abc123", members - 1)
            assert len(pod) <= names.MAX_LABEL
            assert names.instance_name(pod) == f"{slot}-abc123"
            assert names.slot_of(pod) == slot
    assert names.slot_name("shop-chat", 0, "prefill", 1, 2) == "shop-chat-0-p1"


@pytest.mark.parametrize(
    ("own", "want"),
    [((None, None), ["n0", "n1"]), ((None, "CrashLoop"), ["n1"]), (("CrashLoop", None), ["n0"])],
    ids=["the instance as a whole", "its other member", "its leader"],
)
def test_which_nodes_a_repeated_fault_makes_suspect(
    own: tuple[Fault | None, Fault | None], want: list[str]
) -> None:
    lost = replace(both({"fault": own[0]}, {"fault": own[1]}), fault="CrashLoop")
    before = t.Repair(lost.slot, 1, 900.0, last_uid="former")
    seen = t.Observation(
        wanted("1P1D", members=2), (lost,), {}, {}, {}, (before,), frozenset(), 1000.0
    )
    draft = PlanDraft(fabric("p1 a  n0:8 n1:8"))
    count_faults(seen, draft)
    assert [s.node for s in draft.repairs[0].suspects] == want
