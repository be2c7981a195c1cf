"""Pods as `engines.pods` renders them, from edits of a ScenarioGroup."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.api_objects import edited, scenariogroup

from pdserve.api import ScenarioGroup
from pdserve.engines.pods import render_pod
from pdserve.groups.types import NewPod

NPU = "huawei.com/Ascend910"
OWNER = {"apiVersion": "pdserve.io/v1alpha1", "kind": "ScenarioGroup", "name": "shop-chat",
         "uid": "u1", "controller": True}  # fmt: skip
CONTROL = "sha256:" + "0" * 64
NEW = NewPod(
    name="shop-chat-0-p0-abc123",
    slot="shop-chat-0-p0",
    role="prefill",
    group_index=0,
    revision="r1",
    node="n7",
    domains={"leaf": "a", "node": "n7"},
)


def group(**edits: Any) -> ScenarioGroup:
    base = edited(scenariogroup(), {"metadata.namespace": "prod"} | edits)
    return ScenarioGroup.parse(base)


def render(edits: Mapping[str, Any] | None = None, new: NewPod = NEW) -> dict[str, Any]:
    return render_pod(group(**(edits or {})), new, OWNER, control=CONTROL)


def engine(pod: dict[str, Any]) -> dict[str, Any]:
    return next(c for c in pod["spec"]["containers"] if c["name"] == "engine")


def env(pod: dict[str, Any]) -> dict[str, Any]:
    return {e["name"]: e.get("value", e.get("valueFrom")) for e in engine(pod)["env"]}
