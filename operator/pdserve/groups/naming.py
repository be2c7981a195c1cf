"""Names of instances, and the choice of slots.

A name is made from the slot, the revision and the predecessor.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Sequence

from pdserve.groups.types import NewPod, Wanted
from pdserve.terms import Role
from pdserve.topology import Fabric
from pdserve.wire.names import member_name, slot_name

FIRST = "first"


def pod_name(slot: str, revision: str, replaces: str | None) -> str:
    """Name of an instance and of its leader's pod: its slot plus a short hash.

    The hash is of (revision, uid of the instance replaced or "first").

    Deterministic, so a plan repeated after a crash POSTs the same name and is answered 409; and
    new for every substitute, so it never waits for its predecessor to be gone.
    """
    text = f"{revision}\0{replaces or FIRST}"
    return f"{slot}-{hashlib.sha256(text.encode()).hexdigest()[:6]}"


def new_pods(
    slot: str,
    role: Role,
    group_index: int,
    revision: str,
    nodes: Sequence[str],
    fabric: Fabric,
    replaces: str | None,
    *,
    scale_unit: bool = False,
) -> tuple[NewPod, ...]:
    """The pods of a new instance, the leader's first: one member on each of `nodes`."""
    name = pod_name(slot, revision, replaces)
    return tuple(
        NewPod(
            name=member_name(name, member),
            slot=slot,
            role=role,
            group_index=group_index,
            revision=revision,
            node=node,
            domains=dict(fabric.place_of(node)),
            replaces=replaces,
            scale_unit=scale_unit and not member,
            member=member,
            members=len(nodes),
        )
        for member, node in enumerate(nodes)
    )


def slot_range(wanted: Wanted, group_index: int, role: Role) -> tuple[str, ...]:
    """The slots of one role of a group of the wanted size, filled or not."""
    its = wanted.role(role)
    return tuple(
        slot_name(wanted.name, group_index, role, k, its.members) for k in range(its.count)
    )


def is_slot_of(slot: str, wanted: Wanted, group_index: int, role: Role) -> bool:
    """Whether a slot is one of this role of this P/D group."""
    ordinal = re.search(r"[0-9]{1,4}$", slot)
    return ordinal is not None and slot == slot_name(
        wanted.name, group_index, role, int(ordinal[0]), wanted.role(role).members
    )


def free_slots(
    wanted: Wanted, group_index: int, role: Role, taken: Collection[str], count: int
) -> tuple[str, ...]:
    """The first `count` slots, by ordinal, that no instance holds."""
    found: list[str] = []
    ordinal = 0
    while len(found) < count:
        slot = slot_name(wanted.name, group_index, role, ordinal, wanted.role(role).members)
        if slot not in taken:
            found.append(slot)
        ordinal += 1
    return tuple(found)
