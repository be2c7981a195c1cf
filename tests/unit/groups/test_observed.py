"""What is read of a pod, field by field, and when status must name claims before they are used."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from tests.support.builders import RESOURCE
from tests.support.observed import instance_obs
from tests.unit.groups.test_health import LIMITS, NOW, READY, node, pod, stamp

from pdserve.groups import types as t
from pdserve.groups.claims import must_be_recorded_first
from pdserve.groups.instances import InstanceObs
from pdserve.groups.observe import NotOurs
from pdserve.wire import names


def linked(status: str, container: str = "c1") -> dict[str, Any]:
    return {"type": names.CONDITION_LINKED, "status": status, "message": container}


def seen(raw: dict[str, Any], machine: dict[str, Any] | None = None, **meta: Any) -> InstanceObs:
    """The instance of a pod; `meta`: labels and annotations to add, `None` for none at all."""
    for field, more in meta.items():
        known = raw["metadata"].get(field) or {}
        raw["metadata"][field] = None if more is None else {**known, **more}
    return instance_obs(raw, machine or node(), NOW, LIMITS)


PINNED = {
    "nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {
            "nodeSelectorTerms": [
                {"matchFields": [
                    {"key": "metadata.name", "operator": "In", "values": ["n7"]},
                ]}
            ]
        }
    }
}  # fmt: skip

FIELDS: list[tuple[str, InstanceObs, dict[str, Any]]] = [
    ("a sound one", seen(pod(conditions=READY, started=True)), {
        "bound": True, "running": True, "ready": True, "restarts": 0, "ever_linked": False,
        "terminating": False, "drain_started": None, "replaces": None, "fault": None,
        "fault_message": "", "unscheduled": "", "silent": False, "size": 1, "uid": "u1",
        "revision": "r1", "group_index": 0, "created": NOW - 10, "startup_deadline": 300.0,
    }),
    ("it restarted", seen(pod(restartCount=2)), {"restarts": 2}),
    ("restarts not told", seen(pod(restartCount=None)), {"restarts": 0}),
    ("its engine does not run", seen(pod({"waiting": {}})), {"running": False}),
    ("its engine runs, its state says no more", seen(pod({"running": {}})), {"running": True}),
    ("it was linked", seen(pod(conditions=[linked("False")])), {"ever_linked": True}),
    ("not Ready", seen(pod(conditions=[{"type": "Ready", "status": "False"}])), {"ready": False}),
    ("no annotations", seen(pod(), annotations=None), {"replaces": None, "size": 1}),
    ("it replaces none", seen(pod(), annotations={names.ANNOTATION_REPLACES: ""}),
     {"replaces": None}),
    ("a drain that cannot be read", seen(pod(), annotations={names.ANNOTATION_DRAIN: "soon"}),
     {"drain_started": None}),
    ("its node is gone", instance_obs(pod(), None, NOW, LIMITS),
     {"silent": True, "fault": "NodeDeleted", "up_since": None}),
    ("no node yet", seen(pod(node=None)), {"bound": False}),
    ("the scheduler refuses it", seen(pod({}, [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "full",
    }], node=None)), {"unscheduled": "full", "bound": False}),
    ("the other one of two", seen(
        pod(), labels={names.LABEL_MEMBER: "1"},
        annotations={names.ANNOTATION_MEMBERS: "2", names.ANNOTATION_LEADER: "u0"},
    ), {"size": 2, "uid": "u0", "leader": None}),
]  # fmt: skip


@pytest.mark.parametrize(("found", "want"), [r[1:] for r in FIELDS], ids=[r[0] for r in FIELDS])
def test_an_instance_is_read_of_its_pod(found: InstanceObs, want: dict[str, Any]) -> None:
    assert {name: getattr(found, name) for name in want} == want


MEMBERS: list[tuple[str, InstanceObs, dict[str, Any]]] = [
    ("a bound one", seen(pod(containerID="c1", podIP="10.1.1.1")), {
        "node": "n1", "container_id": "c1", "pod_ip": "10.1.1.1", "uid": "u1", "index": 0,
        "linked_container": None, "ready": False, "terminating": False, "draining": False,
        "scale_unit": False, "fault": None,
    }),
    ("without an address or a container", seen(pod(podIP="")),
     {"pod_ip": None, "container_id": None}),
    ("linked", seen(pod(conditions=[linked("True")])), {"linked_container": "c1"}),
    ("no longer linked", seen(pod(conditions=[linked("False")])), {"linked_container": None}),
    ("linked, of no container", seen(pod(conditions=[linked("True", "")])),
     {"linked_container": None}),
    ("Ready", seen(pod(conditions=READY)), {"ready": True}),
    ("draining", seen(pod(), annotations={names.ANNOTATION_DRAIN: stamp(1)}), {"draining": True}),
    ("without annotations", seen(pod(), annotations=None), {"draining": False}),
    ("it stands for the group", seen(pod(), labels={names.LABEL_SCALE_UNIT: "true"}),
     {"scale_unit": True}),
    ("faulty", seen(pod(phase="Failed")), {"fault": "PodFailed"}),
    ("the kubelet names no devices", seen(pod(devices=1, allocatedResourcesStatus=[
        {"name": RESOURCE, "resources": None},
    ])), {"devices": ()}),
]  # fmt: skip


@pytest.mark.parametrize(("found", "want"), [r[1:] for r in MEMBERS], ids=[r[0] for r in MEMBERS])
def test_a_member_is_read_of_its_pod(found: InstanceObs, want: dict[str, Any]) -> None:
    (member,) = found.members
    assert {name: getattr(member, name) for name in want} == want


def test_before_it_is_bound_a_member_is_where_it_is_pinned() -> None:
    raw = pod(node=None)
    raw["spec"]["affinity"] = PINNED
    assert seen(raw).members[0].node == "n7"
    raw["spec"]["nodeName"] = "n1"
    assert seen(raw).members[0].node == "n1"


@pytest.mark.parametrize(
    "meta",
    [
        {"labels": None},
        {"labels": {names.LABEL_MEMBER: "x"}},
        {"annotations": {names.ANNOTATION_MEMBERS: "x"}},
        {"labels": {names.LABEL_MEMBER: "-1"}},
    ],
    ids=str,
)
def test_a_pod_whose_place_cannot_be_read_is_not_ours(meta: dict[str, Any]) -> None:
    with pytest.raises(NotOurs):
        seen(pod(), **meta)


# --- claims in status ----------------------------------------------------------------------------


def claim(name: str) -> t.DeviceClaim:
    return t.DeviceClaim(name, name, name, "decode", 0, "n1", ((RESOURCE, 2),))


A, B = claim("a"), claim("b")
TOLD: list[tuple[str, dict[str, Any], tuple[t.DeviceClaim, ...], bool]] = [
    ("it claims nothing", {}, (), False),
    ("it frees devices", {"claims": (A,)}, (), True),
    ("it frees more", {"claims": (A, B)}, (A,), True),
    ("what it claims is recorded", {"claims": (A,)}, (A,), False),
    ("it gives up what is recorded", {}, (A,), False),
    (
        "it keeps for another slot what is recorded",
        {"claims": (dataclasses.replace(A, slot="b"),)},
        (A,),
        True,
    ),
]


@pytest.mark.parametrize(
    ("parts", "told", "first"), [r[1:] for r in TOLD], ids=[r[0] for r in TOLD]
)
@pytest.mark.invariant(13)
def test_status_names_claims_before_a_plan_that_rests_on_them(
    parts: dict[str, Any], told: tuple[t.DeviceClaim, ...], first: bool
) -> None:
    assert must_be_recorded_first(t.Plan((), (), (), (), **parts), told) is first
