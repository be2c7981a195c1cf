"""Entries of `ScenarioGroup.status.claims`: read and worded. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdserve.api import ScenarioGroup
from pdserve.groups.types import DeviceClaim
from pdserve.terms import Role


def claims_of(group: ScenarioGroup) -> tuple[DeviceClaim, ...]:
    """The claims in status."""
    return tuple(
        DeviceClaim(c.pod, c.uid, c.slot, c.role, c.group_index, c.node, c.resource, c.devices)
        for c in group.status.claims
    )


def to_json(claim: DeviceClaim) -> dict[str, Any]:
    """An entry of status."""
    return {
        "slot": claim.slot,
        "pod": claim.pod,
        "uid": claim.uid,
        "groupIndex": claim.group_index,
        "role": claim.role,
        "node": claim.node,
        "resource": claim.resource,
        "devices": claim.devices,
    }


def from_json(raw: Mapping[str, Any]) -> DeviceClaim | None:
    """The claim of an entry; None where it cannot be read."""
    try:
        role: Role = "decode" if raw["role"] == "decode" else "prefill"
        return DeviceClaim(
            str(raw["pod"]), str(raw["uid"]), str(raw["slot"]), role, int(raw["groupIndex"]),
            str(raw["node"]), str(raw["resource"]), min(max(0, int(raw["devices"])), 1 << 20),
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
