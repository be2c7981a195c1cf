"""Status, scale and `kubectl get` as a client of the real API server sees them."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.api_objects import edited, pdservice, rocedomain, scenariogroup
from tests.support.crds import collection
from tests.support.rest import TABLE, Answer, Rest

from pdserve.api import (
    API_VERSION,
    Condition,
    DeviceUse,
    FreeDevices,
    NodeCounts,
    PDServiceStatus,
    RoCEDomainStatus,
    RoleCount,
    ScenarioGroupStatus,
    ScenarioStatus,
)

pytestmark = pytest.mark.api
READY = Condition(
    type="Ready", status="True", reason="Serving", last_transition_time="2026-01-31T08:15:00Z"
)


@pytest.fixture
def namespace(rest: Rest, request: pytest.FixtureRequest) -> str:
    """A namespace of the test's own."""
    made = {"metadata": {"generateName": "api-"}}
    answer = rest.create("/api/v1/namespaces", made)
    return str(answer.body["metadata"]["name"])


def create(rest: Rest, obj: dict[str, Any], namespace: str) -> str:
    """Create `obj`; returns its URL path."""
    path = collection(obj["kind"], namespace)
    answer = rest.create(path, obj)
    assert answer.code == 201, answer.body
    return f"{path}/{obj['metadata']['name']}"


def set_status(rest: Rest, path: str, status: dict[str, Any]) -> Answer:
    return rest.patch(f"{path}/status", {"status": status})


# --- status ------------------------------------------------------------------------------------


def test_a_write_to_status_changes_neither_spec_nor_generation(rest: Rest, namespace: str) -> None:
    path = create(rest, pdservice(), namespace)
    patch = {"spec": {"gateway": {"port": 81}}, "status": {"observedGeneration": 1}}
    answer = rest.patch(f"{path}/status", patch)
    assert answer.code == 200
    assert answer.body["status"] == {"observedGeneration": 1}
    assert answer.body["spec"]["gateway"]["port"] == 80
    assert answer.body["metadata"]["generation"] == 1


def test_a_write_to_spec_raises_the_generation_and_leaves_status(
    rest: Rest, namespace: str
) -> None:
    path = create(rest, pdservice(), namespace)
    set_status(rest, path, {"observedGeneration": 1})
    patch = {"spec": {"gateway": {"port": 81}}, "status": {"observedGeneration": 7}}
    answer = rest.patch(path, patch)
    assert answer.body["status"] == {"observedGeneration": 1}
    assert answer.body["metadata"]["generation"] == 2


def test_everything_the_models_write_into_status_is_kept(rest: Rest, namespace: str) -> None:
    counts = {"groups": 1, "prefill": 1, "decode": 1}
    decision = {
        "time": "2026-01-31T08:15:00Z",
        "from": counts,
        "to": counts,
        "outcome": "Held",
        "reason": "Steady",
        "message": "nothing to do",
        "inputs": {"offeredPerSecond": "12.1"},
    }
    written = {
        "PDService": PDServiceStatus(
            observed_generation=1,
            conditions=(READY,),
            url="http://shop-gateway.default.svc",
            devices=(DeviceUse(resource="huawei.com/Ascend910", used=3, budget=96),),
            scenarios=(ScenarioStatus.parse({"name": "chat", "lastDecision": decision}),),
        ),
        "ScenarioGroup": ScenarioGroupStatus.parse(
            {
                "selector": "a=b",
                "groups": [{"index": 0, "cells": ["leaf-a: 2P1D"], "tableVersion": 7}],
                "decisions": [decision],
                "repairs": [
                    {
                        "slot": "shop-chat-0-p1",
                        "failures": 2,
                        "lastFailureTime": "2026-01-31T08:15:00Z",
                        "suspectNode": "node-1",
                        "notBeforeTime": "2026-01-31T08:16:00.5Z",
                    }
                ],
                "conditions": [READY.to_dict()],
            }
        ),
        "RoCEDomain": RoCEDomainStatus.parse(
            {
                "topologyVersion": "abc",
                "levels": [{"name": "leaf", "domains": 2}],
                "free": [{"resource": "huawei.com/Ascend910", "devices": 5}],
                "worst": [{"level": "leaf", "value": "leaf-07", "message": "cordoned"}],
            }
        ),
    }
    for obj in (pdservice(), scenariogroup(), rocedomain("written")):
        path = create(rest, obj, namespace)
        status = written[obj["kind"]]
        answer = set_status(rest, path, status.to_dict())
        assert answer.code == 200, answer.body
        assert answer.body["status"] == status.to_dict()


@pytest.mark.parametrize(
    ("status", "field"),
    [
        ({"conditions": [{"type": "Ready"}]}, "status.conditions[0].status"),
        ({"replicas": -1}, "status.replicas"),
        ({"decisions": [{}] * 11}, "status.decisions"),
        ({"groups": [{"index": 0}, {"index": 0}]}, "status.groups[1]"),
    ],
)
def test_a_status_out_of_bounds_is_refused(
    rest: Rest, namespace: str, status: dict[str, Any], field: str
) -> None:
    path = create(rest, scenariogroup(), namespace)
    answer = set_status(rest, path, status)
    assert answer.code == 422
    assert field in [f.lstrip(".") for f, _ in answer.causes]


# --- scale -------------------------------------------------------------------------------------

SELECTOR = "pdserve.io/scenario=chat,pdserve.io/scale-unit=true,pdserve.io/service=shop"


def instance_pod(group: int, ordinal: int) -> dict[str, Any]:
    labels = {"pdserve.io/service": "shop", "pdserve.io/scenario": "chat"}
    if ordinal == 0:
        labels["pdserve.io/scale-unit"] = "true"
    container = {"name": "engine", "image": "pdserve/engine:0.1.0"}
    return {
        "metadata": {"name": f"shop-chat-{group}-{ordinal}", "labels": labels},
        "spec": {"containers": [container], "automountServiceAccountToken": False},
    }


def test_an_autoscaler_reads_groups_and_one_pod_per_group(rest: Rest, namespace: str) -> None:
    path = create(rest, edited(scenariogroup(), {"spec.replicas": 2}), namespace)
    status = ScenarioGroupStatus(replicas=2, ready_replicas=2, selector=SELECTOR)
    set_status(rest, path, status.to_dict())
    for group in range(2):
        for ordinal in range(3):
            pods = f"/api/v1/namespaces/{namespace}/pods"
            answer = rest.create(pods, instance_pod(group, ordinal))
            assert answer.code == 201, answer.body
    scale = rest.get(f"{path}/scale").body
    assert scale["kind"] == "Scale"
    assert scale["spec"] == {"replicas": 2}
    assert scale["status"] == {"replicas": 2, "selector": SELECTOR}
    found = rest.get(
        f"/api/v1/namespaces/{namespace}/pods", labelSelector=scale["status"]["selector"]
    ).body["items"]
    assert len(found) == scale["status"]["replicas"], "metrics per pod are metrics per P/D group"


def test_an_autoscaler_sets_groups_and_nothing_else(rest: Rest, namespace: str) -> None:
    counts = {"spec.replicas": 2, "spec.prefill.replicas": 3, "spec.decode.replicas": 4}
    path = create(rest, edited(scenariogroup(), counts), namespace)
    scale = rest.get(f"{path}/scale").body
    scale["spec"]["replicas"] = 5
    assert rest.call("PUT", f"{path}/scale", scale).code == 200
    spec = rest.get(path).body["spec"]
    assert (spec["replicas"], spec["prefill"]["replicas"], spec["decode"]["replicas"]) == (5, 3, 4)


def test_an_autoscaler_cannot_leave_the_bounds_of_the_type(rest: Rest, namespace: str) -> None:
    path = create(rest, edited(scenariogroup(), {"spec.replicas": 2}), namespace)
    scale = rest.get(f"{path}/scale").body
    scale["spec"]["replicas"] = 65
    answer = rest.call("PUT", f"{path}/scale", scale)
    assert answer.code == 422
    assert "less than or equal to 64" in answer.body["message"]


# --- transitions -------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["service", "scenario"])
def test_a_scenario_group_cannot_move(rest: Rest, namespace: str, field: str) -> None:
    path = create(rest, scenariogroup(), namespace)
    answer = rest.patch(path, {"spec": {field: "other"}})
    assert answer.code == 422
    assert answer.causes[0][0] == f"spec.{field}"
    assert "is immutable: delete this ScenarioGroup and create one" in answer.causes[0][1]


def test_other_fields_of_a_scenario_group_may_change(rest: Rest, namespace: str) -> None:
    path = create(rest, scenariogroup(), namespace)
    assert rest.patch(path, {"spec": {"model": {"name": "other"}}}).code == 200


# --- kubectl get -------------------------------------------------------------------------------


def table(rest: Rest, kind: str, name: str, namespace: str) -> dict[str, Any]:
    """Column -> cell of one object, as kubectl asks for it; wide columns included."""
    body = rest.call("GET", collection(kind, namespace), accept=TABLE).body
    columns = [c["name"] for c in body["columnDefinitions"]]
    (row,) = (r for r in body["rows"] if r["object"]["metadata"]["name"] == name)
    return dict(zip(columns, row["cells"], strict=True))


def test_columns_of_a_service(rest: Rest, namespace: str) -> None:
    path = create(rest, pdservice(), namespace)
    unseen = table(rest, "PDService", "shop", namespace)
    assert unseen["Ready"] is None, "nothing is claimed before it was observed"
    counts = RoleCount(ready=1, desired=2)
    status = PDServiceStatus(
        conditions=(READY,),
        url="http://shop-gateway.default.svc",
        devices=(DeviceUse(resource="huawei.com/Ascend910", used=8, budget=96),),
        scenarios=tuple(
            ScenarioStatus(name=n, prefill=counts, decode=counts, attainment_percent=a)
            for n, a in (("search", 99), ("chat", 97))
        ),
    )
    set_status(rest, path, status.to_dict())
    shown = table(rest, "PDService", "shop", namespace)
    assert list(shown) == [
        "Name", "Ready", "Scenarios", "Prefill", "Decode", "SLO", "Devices", "Reason", "URL", "Age",
    ]  # fmt: skip
    del shown["Age"]
    assert shown == {
        "Name": "shop",
        "Ready": "True",
        "Scenarios": "2/2",
        "Prefill": "2/4",
        "Decode": "2/4",
        "SLO": "97%",
        "Devices": "8/96",
        "Reason": "Serving",
        "URL": "http://shop-gateway.default.svc",
    }


def test_columns_of_a_scenario_group(rest: Rest, namespace: str) -> None:
    counts = {"spec.replicas": 2, "spec.prefill.replicas": 3, "spec.decode.replicas": 1}
    path = create(rest, edited(scenariogroup(), counts), namespace)
    placed = READY.model_copy(update={"type": "Placed", "status": "False", "reason": "NoFit"})
    status = ScenarioGroupStatus(replicas=2, ready_replicas=1, conditions=(READY, placed))
    set_status(rest, path, status.to_dict())
    shown = table(rest, "ScenarioGroup", "shop-chat", namespace)
    assert {k: shown[k] for k in ("Ready", "Groups", "Groups-Ready", "Prefill", "Decode")} == {
        "Ready": "True",
        "Groups": 2,
        "Groups-Ready": 1,
        "Prefill": 3,
        "Decode": 1,
    }
    assert (shown["Placed"], shown["Linked"], shown["Reason"]) == ("False", None, "Serving")
    assert (shown["Service"], shown["Scenario"]) == ("shop", "chat")


def test_columns_of_a_domain(rest: Rest, namespace: str) -> None:
    path = create(rest, rocedomain("columns"), namespace)
    free = FreeDevices(resource="huawei.com/Ascend910", devices=12, largest_group="4P2D")
    status = RoCEDomainStatus(conditions=(READY,), nodes=NodeCounts(total=8, ready=7), free=(free,))
    set_status(rest, path, status.to_dict())
    shown = table(rest, "RoCEDomain", "columns", namespace)
    columns = ("Ready", "Nodes", "Nodes-Ready", "Free", "Largest-Free")
    assert [shown[c] for c in columns] == ["True", 8, 7, 12, "4P2D"]


def test_wide_columns_have_a_lower_priority(rest: Rest, namespace: str) -> None:
    body = rest.call("GET", collection("PDService", namespace), accept=TABLE).body
    wide = {c["name"] for c in body["columnDefinitions"] if c["priority"]}
    assert wide == {"Reason", "URL"}


def test_names_by_which_kubectl_finds_the_kinds(rest: Rest) -> None:
    listed = rest.get(f"/apis/{API_VERSION}").body["resources"]
    found = {r["kind"]: r for r in listed if "/" not in r["name"]}
    assert {k: (r["shortNames"], r["namespaced"]) for k, r in found.items()} == {
        "PDService": (["pds"], True),
        "ScenarioGroup": (["psg"], True),
        "RoCEDomain": (["rdom"], False),
    }
    assert all(r["categories"] == ["pdserve"] for r in found.values())
    subresources = {r["name"] for r in listed if "/" in r["name"]}
    assert subresources == {
        "pdservices/status", "rocedomains/status", "scenariogroups/status", "scenariogroups/scale",
    }  # fmt: skip
