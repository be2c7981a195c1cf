"""Names of pods and choice of slots. A name stands for slot, revision and predecessor."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection

from pdserve.terms import Role
from pdserve.wire.names import slot_name

FIRST = "first"


def pod_name(slot: str, revision: str, replaces: str | None) -> str:
    """Slot plus a short hash of (revision, uid of the pod replaced or "first").

    Deterministic, so a plan repeated after a crash POSTs the same name and is answered 409; and
    new for every substitute, so it never waits for its predecessor to be gone.
    """
    text = f"{revision}\0{replaces or FIRST}"
    return f"{slot}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def slot_range(scenario_group: str, group_index: int, role: Role, count: int) -> tuple[str, ...]:
    """The first `count` slots of one role of a group, filled or not."""
    return tuple(slot_name(scenario_group, group_index, role, k) for k in range(count))


def is_slot_of(slot: str, scenario_group: str, group_index: int, role: Role) -> bool:
    """Whether a slot is one of this role of this P/D group."""
    ordinal = re.search(r"[0-9]{1,4}$", slot)
    return ordinal is not None and slot == slot_name(
        scenario_group, group_index, role, int(ordinal[0])
    )


def free_slots(
    scenario_group: str, group_index: int, role: Role, taken: Collection[str], count: int
) -> tuple[str, ...]:
    """The first `count` slots, by ordinal, that no pod holds."""
    found: list[str] = []
    ordinal = 0
    while len(found) < count:
        slot = slot_name(scenario_group, group_index, role, ordinal)
        if slot not in taken:
            found.append(slot)
        ordinal += 1
    return tuple(found)
