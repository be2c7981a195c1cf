"""What `kubectl pdserve` says about plain values."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pdserve import api
from pdserve.cli import view_explain, view_status
from pdserve.cli.columns import age, table
from pdserve.cli.snapshot import FabricState, NoRight, Snapshot
from pdserve.terms.times import epoch_of
from pdserve.wire import names

EXAMPLES = Path(__file__).resolve().parents[3] / "examples"
NOW = epoch_of("2026-01-01T00:10:00Z")
DEVICE = "huawei.com/Ascend910"


def service(**status: Any) -> api.PDService:
    value = yaml.safe_load((EXAMPLES / "demo-pdservice.yaml").read_text())
    value["metadata"]["namespace"] = "prod"
    return api.PDService.parse(value | {"status": status})


def group(of: api.PDService, scenario: str, **status: Any) -> api.ScenarioGroup:
    spec = of.spec
    return api.ScenarioGroup.parse(
        {
            "apiVersion": names.API_VERSION,
            "kind": "ScenarioGroup",
            "metadata": {"name": f"demo-{scenario}", "namespace": "prod"},
            "spec": {
                "service": "demo",
                "scenario": scenario,
                "model": spec.model.to_dict(),
                "engine": spec.engine.to_dict(),
                "replicas": 1,
                "prefill": spec.prefill.to_dict() | {"replicas": 1},
                "decode": spec.decode.to_dict() | {"replicas": 2},
                "fabric": spec.fabric.to_dict(),
            },
            "status": status,
        }
    )


def pod(name: str, role: str, node: str, ready: bool) -> dict[str, Any]:
    conditions = [
        {"type": "Ready", "status": str(ready)},
        {"type": names.CONDITION_LINKED, "status": str(ready), "message": "c1"},
    ]
    return {
        "metadata": {
            "name": name,
            "namespace": "prod",
            "uid": name,
            "creationTimestamp": "2026-01-01T00:05:00Z",
            "labels": {
                names.LABEL_SERVICE: "demo",
                names.LABEL_SCENARIO: "chat",
                names.LABEL_ROLE: role,
                names.LABEL_GROUP_INDEX: "0",
                names.LABEL_INSTANCE: name,
            },
        },
        "spec": {"nodeName": node, "containers": [{"name": "engine"}]},
        "status": {
            "phase": "Running",
            "conditions": conditions,
            "containerStatuses": [
                {
                    "name": "engine",
                    "containerID": "c1",
                    "restartCount": 0,
                    "state": {"running": {"startedAt": "2026-01-01T00:05:01Z"}},
                }
            ],
        },
    }


def node(name: str, rack: str, leaf: str, devices: int) -> dict[str, Any]:
    labels = {
        "kubernetes.io/hostname": name,
        "kubernetes.io/os": "linux",
        "fabric.pdserve.io/rack": rack,
        "fabric.pdserve.io/leaf": leaf,
    }
    return {
        "metadata": {"name": name, "labels": labels},
        "spec": {},
        "status": {
            "allocatable": {DEVICE: str(devices)},
            "capacity": {DEVICE: str(devices)},
            "conditions": [{"type": "Ready", "status": "True"}],
        },
    }


def fabric(devices: int) -> FabricState:
    domain = api.RoCEDomain.parse(yaml.safe_load((EXAMPLES / "demo-rocedomain.yaml").read_text()))
    return FabricState(
        domain, (node("n1", "r1", "l1", devices), node("n2", "r1", "l1", devices)), ()
    )


DECISION = {
    "time": "2026-01-01T00:08:00Z",
    "from": {"groups": 1, "prefill": 1, "decode": 2},
    "to": {"groups": 1, "prefill": 2, "decode": 2},
    "outcome": "Applied",
    "reason": "GrowPrefill",
    "message": "TTFT attainment is 71 %",
    "inputs": {"attainment": "0.71"},
}


def test_status_before_the_operator_saw_it_says_where_to_look() -> None:
    text = view_status.render(Snapshot(service(), (), ()), NOW)
    assert "the operator has not seen it yet" in text


def test_status_shows_scenarios_groups_and_instances() -> None:
    of = service(
        url="http://demo-gateway.prod.svc:80",
        scenarios=[
            {"name": "chat", "prefill": {"desired": 1, "ready": 1}, "decode": {"desired": 2}}
        ],
    )
    made = group(
        of,
        "chat",
        readyReplicas=1,
        decisions=[DECISION],
        groups=[{"index": 0, "cells": ["l1: 1P2D"], "tableVersion": 4, "prefill": {"desired": 1}}],
    )
    pods = (
        pod("demo-chat-0-d0-x", "decode", "n2", False),
        pod("demo-chat-0-p0-x", "prefill", "n1", True),
    )
    lines = view_status.render(Snapshot(of, (made,), pods), NOW).splitlines()
    chat = next(line for line in lines if line.startswith("chat "))
    assert chat.split()[:5] == ["chat", "Auto", "1/1", "1/1", "0/2"]
    assert "2m ago Applied GrowPrefill: 1 x 1P2D -> 1 x 2P2D" in chat
    assert next(line for line in lines if line.startswith("chat/0")).endswith("l1: 1P2D")
    shown = [line.split() for line in lines if line.startswith("demo-chat-0-")]
    assert [(row[3], row[5]) for row in shown] == [
        ("Ready", "5m"),
        ("Linking", "5m"),
    ]
    assert [row[1] for row in shown] == ["prefill", "decode"]


def test_explain_runs_the_planner_on_what_is_free() -> None:
    of = service()
    found = Snapshot(of, (group(of, "chat", decisions=[DECISION]),), ())
    fits = view_explain.render(found, "chat", fabric(8), NOW)
    assert "If one more P/D group were placed now (1 x 1P2D)" in fits
    assert "one leaf" in fits and "won" in fits
    assert "TTFT attainment is 71 %" in fits and "attainment=0.71" in fits
    short = view_explain.render(found, "chat", fabric(1), NOW)
    assert "1P1D" in short, "the largest P/D group that fits is named"


def test_explain_counts_what_the_template_requests_and_demands() -> None:
    spec = {
        "nodeSelector": {"disk": "ssd"},
        "containers": [{"name": "engine", "resources": {"requests": {"memory": "64Gi"}}}],
    }
    value = yaml.safe_load((EXAMPLES / "demo-pdservice.yaml").read_text())
    for role in ("prefill", "decode"):
        value["spec"][role]["template"] = {"spec": spec}
    found = Snapshot(service(), (group(api.PDService.parse(value), "chat"),), ())
    state = fabric(16)
    first, second = state.nodes
    for each in (first, second):
        each["status"]["allocatable"]["memory"] = "256Gi"
    said = view_explain.render(found, "chat", state, NOW)
    assert "nodes out of use: 2 (the template wants disk=ssd)" in said
    first["metadata"]["labels"]["disk"] = "ssd"
    assert "won" in view_explain.render(found, "chat", state, NOW)
    requests = {"requests": {"memory": "200Gi"}}
    others = {
        "metadata": {"name": "other", "namespace": "prod"},
        "spec": {"nodeName": "n1", "containers": [{"resources": requests}]},
    }
    said = view_explain.render(found, "chat", replace(state, pods=(others,)), NOW)
    assert "memory: 1 of 1 nodes lack 64Gi" in said


def test_explain_names_what_is_missing() -> None:
    of = service()
    found = Snapshot(of, (group(of, "chat"),), ())
    assert "RoCEDomain 'demo' does not exist" in view_explain.render(found, None, None, NOW)
    assert "scenarios: search, chat" in view_explain.render(found, "chart", None, NOW)


@pytest.mark.parametrize(
    ("seconds", "want"),
    [(-3, "0s"), (59, "59s"), (119, "119s"), (120, "2m"), (3600, "1h"), (200000, "2d")],
)
def test_age(seconds: float, want: str) -> None:
    assert age(seconds) == want


def test_table_of_nothing_is_nothing() -> None:
    assert table(("A",), []) == ""


def test_explain_without_a_right_to_nodes_shows_the_rest() -> None:
    """K7.1: the admin of a namespace may not list nodes."""
    of = service()
    mine = group(
        of, "chat",
        conditions=[{"type": "Ready", "status": "True", "reason": "AllReady", "message": "",
                     "lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1}],
    )  # fmt: skip
    refused = NoRight('nodes is forbidden: User "lead" cannot list resource "nodes"')
    text = view_explain.render(Snapshot(of, (mine,), ()), "chat", refused, NOW)
    assert "Ready=True  AllReady" in text
    assert "no decision yet" in text
    assert 'User "lead" cannot list resource "nodes"' in text


def test_status_shows_an_instance_of_two_pods_once_with_its_worst_state() -> None:
    pods = (
        pod("demo-chat-0-p0-abc123", "prefill", "n1", True),
        pod("demo-chat-0-p0-abc123-m1", "prefill", "n2", False),
    )
    for member, shown in enumerate(pods):
        meta = shown["metadata"]
        meta["labels"] |= {names.LABEL_MEMBER: str(member)}
        meta["annotations"] = {names.ANNOTATION_MEMBERS: "2", names.ANNOTATION_LEADER: "u"}
    (row,) = view_status.instances(Snapshot(service(), (), pods), NOW)
    assert (row.name, row.nodes) == ("demo-chat-0-p0-abc123", ("n1", "n2"))
    assert view_status.state_of(row) == "Linking"
    text = view_status.render(Snapshot(service(), (), pods), NOW)
    assert "n1, n2" in text and "-m1" not in text
