"""Entries of `ScenarioGroup.status.claims`: read and worded. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from pdserve.api import ScenarioGroup
from pdserve.api.base import MAX_INT64
from pdserve.api.scenariogroup import MAX_BESIDE
from pdserve.groups.types import DeviceClaim
from pdserve.terms import Role
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.topology.requests import is_extended

MOST_BESIDE: Final = 4096
"""Amounts beside devices in one status, of all its claims together."""
LONGEST_NAME: Final = 128
"""Characters of a resource's name in status."""


def claims_of(group: ScenarioGroup) -> tuple[DeviceClaim, ...]:
    """The claims in status."""
    return tuple(
        DeviceClaim(
            c.pod, c.uid, c.slot, c.role, c.group_index, c.node,
            _takes(c.resource, c.devices, ((b.resource, b.amount) for b in c.beside)),
        )
        for c in group.status.claims
    )  # fmt: skip


def to_json(claims: Iterable[DeviceClaim]) -> list[JsonObject]:
    """The entries of status.

    Devices are kept of all; of what is beside them, no more than a status has room for.
    """
    found, room = [], MOST_BESIDE
    for claim in claims:
        devices_first = sorted(claim.takes, key=lambda taken: not is_extended(taken[0]))
        (resource, devices), *others = devices_first
        beside = [(r, n) for r, n in others if len(r) <= LONGEST_NAME][: min(room, MAX_BESIDE)]
        room -= len(beside)
        found.append(
            {
                "slot": claim.slot,
                "pod": claim.pod,
                "uid": claim.uid,
                "groupIndex": claim.group_index,
                "role": claim.role,
                "node": claim.node,
                "resource": resource,
                "devices": devices,
                "beside": [{"resource": r, "amount": min(n, MAX_INT64)} for r, n in beside],
            }
        )
    return found


def from_json(raw: JsonMap) -> DeviceClaim | None:
    """The claim of an entry; None where it cannot be read."""
    try:
        role: Role = "decode" if raw["role"] == "decode" else "prefill"
        beside = [(str(b["resource"]), int(b["amount"])) for b in raw.get("beside") or ()]
        return DeviceClaim(
            str(raw["pod"]), str(raw["uid"]), str(raw["slot"]), role, int(raw["groupIndex"]),
            str(raw["node"]), _takes(str(raw["resource"]), int(raw["devices"]), beside),
        )  # fmt: skip
    except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
        return None


def _takes(
    resource: str, devices: int, beside: Iterable[tuple[str, int]]
) -> tuple[tuple[str, int], ...]:
    amounts = {**dict(beside), resource: min(devices, 1 << 20)}
    return tuple((r, max(0, amounts[r])) for r in sorted(amounts))
