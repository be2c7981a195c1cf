"""Faults and observations from raw objects."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from tests.support.builders import RESOURCE
from tests.support.observed import classify, instance_obs

from pdserve.groups.health import HealthLimits
from pdserve.groups.observe import NotOurs
from pdserve.terms import Device
from pdserve.wire import names

NOW = 1_000_000.0
LIMITS = HealthLimits(node_suspect=30, startup_deadline=300, unschedulable_seconds=15)


def stamp(ago: float) -> str:
    return datetime.fromtimestamp(NOW - ago, UTC).isoformat().replace("+00:00", "Z")


def pod(
    state: dict[str, Any] | None = None,
    conditions: list[dict[str, Any]] | None = None,
    age: float = 10,
    node: str | None = "n1",
    devices: int = 8,
    **status: Any,
) -> dict[str, Any]:
    engine = {"name": "engine", "state": {"running": {}} if state is None else state}
    for key in ("restartCount", "lastState", "allocatedResourcesStatus", "containerID", "started"):
        if key in status:
            engine[key] = status.pop(key)
    return {
        "metadata": {
            "name": "shop-chat-0-p0-abc123",
            "uid": "u1",
            "creationTimestamp": stamp(age),
            "labels": {
                names.LABEL_ROLE: "prefill",
                names.LABEL_GROUP_INDEX: "0",
                names.LABEL_REVISION: "r1",
                names.TOPOLOGY_PREFIX + "leaf": "a",
            },
        },
        "spec": {
            "nodeName": node,
            "containers": [{"name": "engine", "resources": {"limits": {RESOURCE: str(devices)}}}],
        },
        "status": {
            "phase": "Running",
            "conditions": conditions or [],
            "containerStatuses": [{"name": "sidecar", "state": {}}, engine],
            **status,
        },
    }


def node(ready: str = "True", since: float = 0, unhealthy: str = "") -> dict[str, Any]:
    return {
        "metadata": {
            "name": "n1",
            "annotations": {
                names.ANNOTATION_UNHEALTHY_DEVICES: unhealthy,
                names.ANNOTATION_ROCE_DEVICES: '[{"id":1,"ip":"10.0.0.2"},{"id":0}]',
            },
        },
        "status": {
            "capacity": {RESOURCE: "8"},
            "allocatable": {RESOURCE: "8"},
            "conditions": [{"type": "Ready", "status": ready, "lastTransitionTime": stamp(since)}],
        },
    }


def waiting(reason: str) -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": "told"}}


UNSCHEDULED = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
READY = [{"type": "Ready", "status": "True"}]

CASES: list[tuple[str, dict[str, Any], dict[str, Any] | None, str | None, float | None]] = [
    ("running and Ready", pod(conditions=READY), node(), None, None),
    ("starting", pod(age=100), node(), None, 200),
    ("started too long ago", pod(age=300), node(), "StartupDeadline", None),
    ("it answers: the rest is not its own", pod(age=9000, started=True), node(), None, None),
    (
        "restarted in place: its time starts anew",
        pod({"running": {"startedAt": stamp(20)}}, age=9000),
        node(),
        None,
        280,
    ),
    (
        "was Ready until a moment ago",
        pod(
            conditions=[{"type": "Ready", "status": "False", "lastTransitionTime": stamp(5)}],
            age=9000,
        ),
        node(),
        None,
        295,
    ),
    ("node gone", pod(conditions=READY), None, "NodeDeleted", None),
    ("node NotReady, within its time", pod(conditions=READY), node("Unknown", 12), None, 18),
    ("node NotReady for too long", pod(conditions=READY), node("False", 30), "NodeLost", None),
    ("evicted", pod(phase="Failed", reason="Evicted"), node(), "PodFailed", None),
    ("ended by itself", pod(phase="Succeeded"), node(), "PodFailed", None),
    (
        "rejected at admission: no container ever ran",
        pod(phase="Failed", reason="UnexpectedAdmissionError", containerStatuses=[]),
        node(),
        "NodeRefused",
        None,
    ),
    (
        "rejected, told with containers that wait",
        pod({"waiting": {"reason": "ContainerCreating"}}, phase="Failed", reason="OutOfcpu"),
        node(),
        "NodeRefused",
        None,
    ),
    (
        "only an init container ran",
        pod(
            phase="Failed",
            containerStatuses=[],
            initContainerStatuses=[{"name": "fetch", "state": {"terminated": {"exitCode": 1}}}],
        ),
        node(),
        "PodFailed",
        None,
    ),
    ("all devices held, one unhealthy", pod(), node(unhealthy="3"), "DeviceUnhealthy", None),
    ("some devices held, unknown which", pod(devices=2), node(unhealthy="3"), None, 290),
    (
        "some devices held, that one among them",
        pod(
            devices=2,
            allocatedResourcesStatus=[
                {"name": RESOURCE, "resources": [{"resourceID": "npu-3", "health": "Healthy"}]}
            ],
        ),
        node(unhealthy="3"),
        "DeviceUnhealthy",
        None,
    ),
    (
        "the kubelet says so itself",
        pod(
            devices=2,
            allocatedResourcesStatus=[
                {"name": RESOURCE, "resources": [{"resourceID": "npu-0", "health": "Unhealthy"}]}
            ],
        ),
        node(),
        "DeviceUnhealthy",
        None,
    ),
    ("two restarts", pod(waiting("CrashLoopBackOff"), restartCount=2), node(), None, 290),
    ("back-off", pod(waiting("CrashLoopBackOff"), restartCount=3), node(), "CrashLoop", None),
    ("many restarts long ago", pod(conditions=READY, restartCount=9), node(), None, None),
    ("image pull fails, within its time", pod(waiting("ErrImagePull")), node(), None, 50),
    ("image pull fails", pod(waiting("ImagePullBackOff"), age=60), node(), "ImageError", None),
    ("no such image name", pod(waiting("InvalidImageName")), node(), "ImageError", None),
    (
        "unschedulable, within its time",
        pod({}, [UNSCHEDULED], node=None),
        node(),
        None,
        5,
    ),
    ("unschedulable", pod({}, [UNSCHEDULED], 15, node=None), node(), "Unschedulable", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("raw", "machine", "fault", "recheck"), [c[1:] for c in CASES], ids=[c[0] for c in CASES]
)
def test_faults(
    raw: dict[str, Any],
    machine: dict[str, Any] | None,
    fault: str | None,
    recheck: float | None,
) -> None:
    verdict = classify(raw, machine, NOW, LIMITS)
    assert verdict.fault == fault
    assert verdict.recheck_after == (None if recheck is None else pytest.approx(recheck))
    assert bool(verdict.message) == (fault is not None)


@pytest.mark.parametrize(
    ("ready", "silent", "fault"),
    [("Unknown", 31, True), ("Unknown", 29, False), ("True", 9000, False)],
)
def test_only_silence_that_the_reader_heard_counts(ready: str, silent: float, fault: bool) -> None:
    """The Node's own stamp is hours old; a Ready Node is cleared whatever was counted."""
    machine = node(ready, 9000)
    verdict = classify(pod(conditions=READY), machine, NOW, LIMITS, silent=silent)
    assert (verdict.fault == "NodeLost") is fault


@pytest.mark.parametrize("step", [-3600.0, 3600.0])
def test_deadlines_run_on_the_readers_clock(step: float) -> None:
    """Stamps of a clock that is an hour off, each first seen 5 s ago by the reader."""
    raw = [
        pod({}, [UNSCHEDULED], age=step, node=None),
        pod(waiting("ErrImagePull"), age=step),
        pod({"running": {"startedAt": stamp(step)}}, age=step),
    ]
    raw[0]["status"]["conditions"][0] = {**UNSCHEDULED, "lastTransitionTime": stamp(step)}
    for obj in raw:
        verdict = classify(obj, node(), NOW, LIMITS, since=lambda _what, _stamp: NOW - 5)
        assert verdict.fault is None
        assert verdict.recheck_after is not None
        assert verdict.recheck_after <= 295
    future = pod({}, [UNSCHEDULED], age=-3600, node=None)
    future["status"]["conditions"][0] = {**UNSCHEDULED, "lastTransitionTime": stamp(-3600)}
    assert classify(future, node(), NOW, LIMITS).recheck_after == 15


@pytest.mark.parametrize(
    "raw",
    [pod(phase="Failed"), pod(phase="Succeeded"), pod(waiting("CrashLoopBackOff"), restartCount=9),
     pod(age=9000), pod(waiting("ImagePullBackOff"), age=9000)],
)  # fmt: skip
def test_a_pod_that_is_being_deleted_has_no_fault_of_its_own(raw: dict[str, Any]) -> None:
    raw["metadata"]["deletionTimestamp"] = stamp(1)
    assert classify(raw, node(), NOW, LIMITS).fault is None
    assert classify(raw, node("Unknown", 31), NOW, LIMITS).fault == "NodeLost"
    assert classify(raw, None, NOW, LIMITS).fault == "NodeDeleted"


def test_messages_say_what_was_seen() -> None:
    crash = pod(
        waiting("CrashLoopBackOff"),
        restartCount=4,
        lastState={"terminated": {"exitCode": 137}},
    )
    assert classify(crash, node(), NOW, LIMITS).message == (
        "engine restarted 4 times, last exit code 137"
    )
    assert "node n1 NotReady for 45 s" in classify(pod(), node("False", 45), NOW, LIMITS).message
    assert (
        "Evicted: low on memory"
        in (
            classify(
                pod(phase="Failed", reason="Evicted", message="low on memory"), node(), NOW, LIMITS
            )
        ).message
    )


def test_an_instance_is_read_whole() -> None:
    raw = pod(
        conditions=[
            *READY,
            {"type": names.CONDITION_LINKED, "status": "True", "message": "containerd://1"},
        ],
        containerID="containerd://1",
        podIP="10.1.1.1",
        restartCount=2,
    )
    raw["metadata"]["labels"][names.LABEL_SCALE_UNIT] = "true"
    raw["metadata"]["annotations"] = {
        names.ANNOTATION_DRAIN: stamp(7),
        names.ANNOTATION_REPLACES: "u0",
    }
    seen = instance_obs(raw, node(), NOW, LIMITS)
    assert (seen.name, seen.slot, seen.role) == (
        "shop-chat-0-p0-abc123",
        "shop-chat-0-p0",
        "prefill",
    )
    assert (seen.running, seen.ready, seen.linked, seen.scale_unit) == (True, True, True, True)
    assert seen.domains == {"leaf": "a"}
    (member,) = seen.members
    assert (member.pod, member.uid, member.node) == ("shop-chat-0-p0-abc123", "u1", "n1")
    assert member.devices == (Device(0), Device(1, "10.0.0.2"))
    assert member.holds == {RESOURCE: 8, "pods": 1}
    assert seen.replaces == "u0"
    assert seen.drain_started == NOW - 7


def test_linked_is_lost_with_the_container() -> None:
    linked = {"type": names.CONDITION_LINKED, "status": "True", "message": "containerd://1"}
    seen = instance_obs(pod(conditions=[linked], containerID="containerd://2"), node(), NOW)
    assert not seen.linked
    assert seen.members[0].linked_container == "containerd://1"


def test_since_when_an_instance_is_linked_is_known_while_it_is() -> None:
    def since(status: str) -> float | None:
        linked = {
            "type": names.CONDITION_LINKED, "status": status, "lastTransitionTime": stamp(3),
        }  # fmt: skip
        return instance_obs(pod(conditions=[linked]), node(), NOW).linked_since

    assert since("True") == NOW - 3
    assert since("False") is None
    assert instance_obs(pod(), node(), NOW).linked_since is None


def test_the_start_of_a_pod_is_not_judged_while_its_node_is_silent() -> None:
    """What the node last said is old; its own deadline, the longer one, runs alone."""
    silent, heard = node("Unknown", since=20), node()
    late = pod(age=400)
    assert instance_obs(late, silent, NOW, LIMITS).fault is None
    assert instance_obs(late, heard, NOW, LIMITS).fault == "StartupDeadline"
    answered = pod(started=True, age=400)
    assert instance_obs(answered, silent, NOW, LIMITS).up_since is None
    assert instance_obs(answered, heard, NOW, LIMITS).up_since is not None
    assert instance_obs(late, node("Unknown", since=40), NOW, LIMITS).fault == "NodeLost"


def test_devices_of_a_partial_node_come_from_the_kubelet_or_not_at_all() -> None:
    told = [{"name": RESOURCE, "resources": [{"resourceID": "npu-1", "health": "Healthy"}]}]
    seen = instance_obs(pod(devices=1, allocatedResourcesStatus=told), node(), NOW)
    assert seen.members[0].devices == (Device(1, "10.0.0.2"),)
    assert instance_obs(pod(devices=1), node(), NOW).members[0].devices == ()


@pytest.mark.parametrize(
    ("label", "value", "says"),
    [
        (names.LABEL_ROLE, "both", "label pdserve.io/role is 'both'"),
        (names.LABEL_GROUP_INDEX, "x", "label pdserve.io/group-index is 'x', want a number"),
    ],
)
def test_a_pod_without_our_labels_is_refused(label: str, value: str, says: str) -> None:
    raw = pod()
    raw["metadata"]["labels"][label] = value
    with pytest.raises(NotOurs, match=says):
        instance_obs(raw, node(), NOW)
