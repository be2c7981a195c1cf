"""A data centre for the placement bench: nodes in leaves in pods, and groups that come and go.

It keeps a fabric as the operator does: after each change the fabric is renewed from the nodes that
changed, and nothing is counted anew that did not change.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from pdserve.placement import Assignment, Cell, Cost, GroupRequest, Placement, Shape
from pdserve.placement.capacity import Capacity
from pdserve.placement.cost import Spread
from pdserve.placement.packing import nodes_in_leaf
from pdserve.terms import ROLES
from pdserve.topology import Fabric, FabricLevel, NodeView, Reservation, TreeSpec, build_fabric
from pdserve.topology.spec import HOSTNAME_LABEL

NPU = "example.com/npu"
DEVICES = 8
"""Of every node."""
SPEC = TreeSpec(
    "az1",
    (
        FabricLevel("pod", "example.com/pod", 3),
        FabricLevel("leaf", "example.com/leaf", 1),
        FabricLevel("node", HOSTNAME_LABEL, 0),
    ),
)
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of P/D group: counts, and devices of a prefill and of a decode."""

    prefill: int
    decode: int
    prefill_devices: int
    decode_devices: int

    def __str__(self) -> str:
        sizes = {self.prefill_devices, self.decode_devices}
        return f"{self.prefill}P{self.decode}D x {'/'.join(map(str, sorted(sizes)))}"

    @property
    def devices(self) -> int:
        """Of the whole group."""
        return self.prefill * self.prefill_devices + self.decode * self.decode_devices

    @property
    def request(self) -> GroupRequest:
        """The question to placement."""
        return GroupRequest(
            self.prefill, self.decode, shape(self.prefill_devices), shape(self.decode_devices)
        )


KINDS = (
    Kind(2, 4, 4, 4), Kind(1, 1, 8, 8), Kind(4, 4, 8, 8), Kind(6, 2, 8, 8), Kind(3, 5, 2, 4),
    Kind(8, 8, 8, 8), Kind(1, 3, 2, 8), Kind(5, 7, 8, 8), Kind(2, 2, 1, 1), Kind(12, 20, 8, 8),
)  # fmt: skip


def shape(devices: int) -> Shape:
    """An instance of so many devices, with what its pod requests beside them."""
    beside = (("cpu", 1000 * devices), ("memory", 4096 * MIB * devices), ("pods", 1))
    return Shape(NPU, devices, requests=beside)


def views(pods: int, leaves: int, nodes: int) -> list[NodeView]:
    """So many nodes in each of so many leaves in each of so many pods, all free."""
    offers = {"cpu": 64_000, "memory": (1 << 20) * MIB, "pods": 110}
    return [
        NodeView(
            name := f"n{pod:02d}-{leaf:02d}-{number:02d}",
            {
                "example.com/pod": f"pod{pod:02d}",
                "example.com/leaf": f"leaf{pod:02d}-{leaf:02d}",
                HOSTNAME_LABEL: name,
            },
            {NPU: DEVICES},
            {NPU: DEVICES},
            offers=offers,
        )
        for pod in range(pods)
        for leaf in range(leaves)
        for number in range(nodes)
    ]


class Site:
    """Nodes, what is taken of them, and the fabric that shows it."""

    def __init__(self, nodes: Iterable[NodeView]) -> None:
        self._nodes = {view.name: view for view in nodes}
        self.fabric: Fabric = build_fabric(SPEC, self._nodes.values())
        self.groups: list[tuple[Kind, Placement]] = []
        self.devices = DEVICES * len(self._nodes)
        self.taken = 0

    def add(self, kind: Kind, found: Placement) -> None:
        """A group takes its places."""
        self.groups.append((kind, found))
        self.taken += kind.devices
        self._count(found.reservations, 1)

    def remove(self, rng: random.Random) -> None:
        """A group goes."""
        kind, found = self.groups.pop(rng.randrange(len(self.groups)))
        self.taken -= kind.devices
        self._count(found.reservations, -1)

    def change(self, used: Mapping[str, int]) -> None:
        """These nodes have so many devices in use by others."""
        changed = {n: replace(self._nodes[n], used={NPU: count}) for n, count in used.items()}
        self._nodes.update(changed)
        self.fabric = self.fabric.renewed(changed, {})

    def _count(self, reservations: Iterable[Reservation], sign: int) -> None:
        changed: dict[str, dict[str, int]] = {}
        for r in reservations:
            used = changed.setdefault(r.node, dict(self._nodes[r.node].used))
            used[r.resource] = used.get(r.resource, 0) + sign * r.devices
        found = {name: replace(self._nodes[name], used=used) for name, used in changed.items()}
        self._nodes.update(found)
        self.fabric = self.fabric.renewed(found, {})


def as_placement(capacity: Capacity, request: GroupRequest, spread: Spread) -> Placement:
    """The group spread so, its nodes chosen as `place` chooses them."""
    assignments: list[Assignment] = []
    used = {leaf: counts for leaf, counts in sorted(spread.items()) if any(counts)}
    for leaf, counts in used.items():
        for role, nodes in zip(ROLES, nodes_in_leaf(capacity, leaf, *counts), strict=True):
            assignments += [Assignment(role, k, its) for k, its in enumerate(nodes)]
    return Placement(
        assignments=tuple(assignments),
        cells=tuple(Cell(leaf, *counts) for leaf, counts in used.items()),
        cost=Cost(0, 0, 0, 0, 0),
        candidates=(),
        explanation=(),
        reservations=tuple(
            r
            for a in assignments
            for r in request.shape(a.role).reservations(f"{a.role}-{a.ordinal}", a.nodes)
        ),
    )
