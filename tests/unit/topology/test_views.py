"""Rule: whatever a Pod or Node holds, reading it gives a view or one declared error."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.hostile import VALUES, deep, places, put, without

from pdserve.terms.raw import ObjectError
from pdserve.topology import NodeView, PodView, kept_pod, node_view, pod_view
from pdserve.wire import names
from pdserve.wire.pin import pin_to

NPU = "huawei.com/Ascend910"
STAMP = "2026-01-01T00:00:00Z"

POD: dict[str, Any] = {
    "metadata": {
        "name": "shop-chat-0-p0-abc123",
        "namespace": "prod",
        "uid": "u1",
        "creationTimestamp": STAMP,
        "deletionTimestamp": STAMP,
        "labels": {
            names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
            names.LABEL_ROLE: "prefill",
            names.TOPOLOGY_PREFIX + "leaf": "a",
            "app": "x",
        },
        "annotations": {names.ANNOTATION_DRAIN: STAMP, "note": "x"},
        "ownerReferences": [
            {"kind": "Node", "name": "n", "uid": "o0"},
            {"kind": "ScenarioGroup", "name": "shop-chat", "uid": "o1", "controller": True},
        ],
    },
    "spec": {
        "affinity": {"nodeAffinity": pin_to("n7")},
        "overhead": {"cpu": "10m"},
        "resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "1"}},
        "initContainers": [{"restartPolicy": "Always", "resources": {"requests": {"cpu": "1"}}}],
        "containers": [
            {
                "resources": {"limits": {NPU: "2"}, "requests": {"memory": "1Gi"}},
                "ports": [{"hostPort": 80, "hostIP": "10.0.0.1", "protocol": "TCP"}],
            }
        ],
    },
    "status": {
        "phase": "Running",
        "reason": "r",
        "message": "m",
        "podIP": "10.0.0.9",
        "conditions": [
            {"type": "Ready", "status": "True", "lastTransitionTime": STAMP},
            {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "x"},
        ],
        "initContainerStatuses": [{"state": {"terminated": {"exitCode": 0}}}],
        "containerStatuses": [
            {
                "name": "engine",
                "containerID": "containerd://1",
                "started": True,
                "restartCount": 3,
                "state": {"running": {"startedAt": STAMP}, "waiting": {"reason": "a"}},
                "lastState": {"terminated": {"exitCode": 137}},
                "allocatedResourcesStatus": [
                    {"name": NPU, "resources": [{"resourceID": "npu-4", "health": "Unhealthy"}]}
                ],
            }
        ],
    },
}
NODE: dict[str, Any] = {
    "metadata": {
        "name": "n1",
        "uid": "u1",
        "labels": {"a": "b"},
        "annotations": {
            names.ANNOTATION_ROCE_DEVICES: '[{"id": 0, "ip": "10.0.0.1"}]',
            names.ANNOTATION_UNHEALTHY_DEVICES: "0",
        },
    },
    "spec": {
        "unschedulable": True,
        "taints": [{"key": "k", "value": "v", "effect": "NoSchedule"}],
    },
    "status": {
        "capacity": {NPU: "8", "cpu": "64"},
        "allocatable": {NPU: "8", "cpu": "64"},
        "conditions": [{"type": "Ready", "status": "True", "lastTransitionTime": STAMP}],
    },
}
HOSTILE = (*VALUES, deep())
OF_POD = [path for path in places(POD) if path]
OF_NODE = [path for path in places(NODE) if path]


@pytest.mark.invariant(10)
@pytest.mark.parametrize("path", OF_POD, ids=[".".join(map(str, p)) for p in OF_POD])
def test_any_value_anywhere_in_a_pod_costs_that_value_or_that_version(path: Any) -> None:
    for spoiled in (without(POD, path), *(put(POD, path, value) for value in HOSTILE)):
        for read in (pod_view, kept_pod):
            try:
                view = read(spoiled)
            except ObjectError as error:
                assert len(str(error)) < 300
                continue
            if view is not None:
                _use(view)


@pytest.mark.invariant(10)
@pytest.mark.parametrize("path", OF_NODE, ids=[".".join(map(str, p)) for p in OF_NODE])
def test_any_value_anywhere_in_a_node_costs_that_value_or_that_version(path: Any) -> None:
    for spoiled in (without(NODE, path), *(put(NODE, path, value) for value in HOSTILE)):
        try:
            view = node_view(spoiled)
        except ObjectError as error:
            assert len(str(error)) < 300
        else:
            assert view == node_view(spoiled)
            assert isinstance(view.name, str)


def _use(view: PodView) -> None:
    """What readers of a view rely on, whatever the pod said."""
    assert view.name
    assert all(type(n) is int and n > 0 for n in view.requested.values())
    assert all(type(v) is str for v in (*view.labels.values(), *view.annotations.values()))
    assert type(view.engine.restarts) is int
    assert isinstance(view.created, float)
    assert view.device_ids is None or all(type(i) is int for i in view.device_ids)
    assert view.place == (view.node or view.pinned or "")


def test_what_a_view_of_a_pod_holds() -> None:
    view = pod_view(POD)
    assert view == kept_pod(POD)
    assert (view.name, view.namespace, view.uid) == ("shop-chat-0-p0-abc123", "prod", "u1")
    assert view.ours
    assert view.deleting
    assert view.created == 1767225600.0
    assert view.owner is not None
    assert (view.owner.kind, view.owner.name, view.owner.uid) == (
        "ScenarioGroup", "shop-chat", "o1",
    )  # fmt: skip
    assert set(view.labels) == {
        names.LABEL_MANAGED_BY, names.LABEL_ROLE, names.TOPOLOGY_PREFIX + "leaf",
    }  # fmt: skip
    assert view.annotations == {names.ANNOTATION_DRAIN: STAMP}
    assert (view.node, view.pinned, view.place) == ("", "n7", "n7")
    assert view.devices == {NPU: 2}
    assert view.takes == view.requested
    assert (view.phase, view.reason, view.message, view.ip) == ("Running", "r", "m", "10.0.0.9")
    assert view.ready.true
    assert view.ready.changed == view.created
    assert (view.scheduled.status, view.scheduled.reason) == ("False", "Unschedulable")
    assert view.linked.status == ""
    assert view.ever_ran
    engine = view.engine
    assert (engine.id, engine.started, engine.running, engine.restarts) == (
        "containerd://1", True, True, 3,
    )  # fmt: skip
    assert (engine.waiting, engine.exit_code, engine.running_since) == ("a", 137, view.created)
    assert view.device_ids == frozenset({4})
    assert engine.devices[0].unhealthy
    assert view.reference["metadata"] == {
        "name": "shop-chat-0-p0-abc123", "namespace": "prod", "uid": "u1",
    }  # fmt: skip


def _of_others(**status: Any) -> dict[str, Any]:
    labels = {"app": "web"}
    return {**POD, "metadata": {**POD["metadata"], "labels": labels}, "status": status}


@pytest.mark.parametrize(
    ("case", "pod", "kept"),
    [
        ("ours", POD, True),
        ("ours, ended", {**POD, "status": {"phase": "Failed"}}, True),
        ("of others, with devices", _of_others(phase="Pending"), True),
        ("of others, ended", _of_others(phase="Succeeded"), False),
        (
            "of others, bound",
            {"metadata": {"name": "web"}, "spec": {"nodeName": "n1", "containers": []}},
            True,
        ),
        ("of others, not bound", {"metadata": {"name": "web"}, "spec": {"containers": []}}, False),
    ],
)
def test_which_pods_a_cache_keeps(case: str, pod: dict[str, Any], kept: bool) -> None:
    assert (kept_pod(pod) is not None) is kept, case


def test_an_ended_pod_takes_nothing_and_still_says_what_it_asked_for() -> None:
    view = pod_view({**POD, "status": {"phase": "Failed"}})
    assert (view.takes, view.devices) == ({}, {})
    assert view.requested_devices == {NPU: 2}
    assert not view.ever_ran


def test_of_a_pod_that_others_own_only_what_it_takes_is_kept() -> None:
    spec = {"nodeName": "n1", "containers": [{"resources": {"requests": {"cpu": "100m"}}}]}
    labels = {"labels": {"app": "web"}, "annotations": {names.ANNOTATION_DRAIN: STAMP}}
    meta = {"name": "web", "namespace": "prod", "uid": "u2", **labels}
    view = kept_pod({"metadata": meta, "spec": spec, "status": POD["status"]})
    taken = {"cpu": 100, "pods": 1}
    assert view == PodView("web", "prod", "u2", node="n1", requested=taken)


def test_what_a_view_of_a_node_holds() -> None:
    view = node_view(NODE)
    assert isinstance(view, NodeView)
    assert (view.name, view.uid, view.ready, view.ready_changed) == ("n1", "u1", True, 1767225600.0)
    assert view.reference["metadata"] == {"name": "n1", "uid": "u1"}
    soft = {"key": "old", "effect": "PreferNoSchedule"}
    tainted = node_view({**NODE, "spec": {"taints": [*NODE["spec"]["taints"], soft]}})
    assert tainted.taints == view.taints
    assert [t.key for t in tainted.soft_taints] == ["old"]
