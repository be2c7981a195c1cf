"""Questions to placement and its answers. Values only; how they are found is in the neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pdserve.terms import Role
from pdserve.topology import Fabric, NodeView, Path, Reservation, Toleration
from pdserve.topology.affinity import Term, matches

Mode = Literal["Preferred", "Required"]
Nodes = tuple[str, ...]
"""The node of each member of one instance, the leader's first; all of one leaf."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What each member of an instance takes on its node: `devices` of the extended resource
    `resource`, and whatever else its pod requests.
    """

    resource: str
    devices: int
    tolerations: tuple[Toleration, ...] = ()
    nodes: frozenset[str] | None = None
    """Nodes from which its volumes are reached; None: every node."""
    requests: tuple[tuple[str, int], ...] = ()
    """What it takes beside these devices, as `topology.requests` counts it."""
    selector: frozenset[Term] | None = None
    """What its pod demands of its node's labels; None: nothing."""
    members: int = 1
    """How many there are: on one node if one has room, else on nodes of one leaf."""

    @property
    def total(self) -> int:
        """Devices of the whole instance: those of a member times its members."""
        return self.devices * self.members

    @property
    def devices_text(self) -> str:
        """`8 example.com/npu`, and how many times where an instance has several members."""
        one = f"{self.devices} {self.resource}"
        return one if self.members == 1 else f"{self.members} x {one}"

    def reaches(self, node: str) -> bool:
        """Whether its volumes can be used from that node."""
        return self.nodes is None or node in self.nodes

    def selects(self, view: NodeView) -> bool:
        """Whether the node has the labels that its pod demands."""
        return self.selector is None or matches(self.selector, view.name, view.labels)

    def reservations(self, pod: str, nodes: Nodes) -> tuple[Reservation, ...]:
        """All that a member takes on each of these nodes."""
        takes = ((self.resource, self.devices), *self.requests)
        return tuple(Reservation(pod, node, r, n) for node in nodes for r, n in takes)


@dataclass(frozen=True, slots=True)
class Site:
    """The nodes of each instance of one P/D group, by role."""

    prefill: frozenset[frozenset[str]] = frozenset()
    decode: frozenset[frozenset[str]] = frozenset()


@dataclass(frozen=True, slots=True)
class GroupRequest:
    """A whole P/D group of `prefill` + `decode` instances, placed together or not at all."""

    prefill: int
    decode: int
    prefill_shape: Shape
    decode_shape: Shape
    mode: Mode = "Preferred"
    level: str | None = None
    """Required: all instances inside one part of this level (None: a leaf). Preferred: crossing
    parts of inner levels costs nothing (None: every level counts)."""
    exclude: frozenset[str] = frozenset()
    """Suspect nodes: never used."""
    beside: tuple[Site, ...] = ()
    """Where the other P/D groups of the scenario are."""
    more: bool = False
    """At least one more P/D group like this one is placed next."""

    def shape(self, role: Role) -> Shape:
        """The shape of one role."""
        return self.prefill_shape if role == "prefill" else self.decode_shape

    def count(self, role: Role) -> int:
        """The count of one role."""
        return self.prefill if role == "prefill" else self.decode


@dataclass(frozen=True, slots=True)
class PlacedInstance:
    """An instance that exists, for growth, substitution and removal."""

    name: str
    role: Role
    nodes: Nodes
    ready: bool = True


@dataclass(frozen=True, slots=True, order=True)
class Cost:
    """The true cost of a candidate, compared term by term from the first.

    `unplaced`: instances without a node. `traffic`: KV that crosses uplinks under a local-first
    gateway, sum over parts u of hop_cost(u) * max(0, a_u - b_u), scaled by n_p * n_d so that it
    is an integer. `slots_lost`: one-leaf places for a whole group like this
    that are no longer there afterwards. `domains`: leaves used. `leftover`: free devices that
    stay in the leaves used (best fit).
    """

    unplaced: int
    traffic: int
    slots_lost: int
    domains: int
    leftover: int

    def __str__(self) -> str:
        return (
            f"unplaced {self.unplaced}, traffic {self.traffic}, slots lost {self.slots_lost}, "
            f"leaves {self.domains}, leftover {self.leftover}"
        )


@dataclass(frozen=True, slots=True)
class Cell:
    """Instances of one group in one leaf."""

    leaf: Path
    prefill: int
    decode: int


@dataclass(frozen=True, slots=True)
class PlacementCandidate:
    """One way that was considered, and why it lost (`won` for the winner)."""

    kind: str
    cells: tuple[Cell, ...]
    cost: Cost
    verdict: str


@dataclass(frozen=True, slots=True)
class Assignment:
    """One instance of the group: its ordinal within the role, and its nodes."""

    role: Role
    ordinal: int
    nodes: Nodes


@dataclass(frozen=True, slots=True)
class Placement:
    """Nodes for every instance; `explanation` has a line per candidate."""

    assignments: tuple[Assignment, ...]
    cells: tuple[Cell, ...]
    cost: Cost
    candidates: tuple[PlacementCandidate, ...]
    explanation: tuple[str, ...]
    reservations: tuple[Reservation, ...]

    def on(self, role: Role) -> tuple[Nodes, ...]:
        """Nodes of each instance of one role, by ordinal."""
        return tuple(a.nodes for a in self.assignments if a.role == role)

    @property
    def site(self) -> Site:
        """Its nodes by role."""
        return Site(
            frozenset(map(frozenset, self.on("prefill"))),
            frozenset(map(frozenset, self.on("decode"))),
        )


@dataclass(frozen=True, slots=True)
class NoFit:
    """No place. `message` is one sentence for a condition: why, what is missing, what fits."""

    message: str


@dataclass(frozen=True, slots=True)
class InstancePlacement:
    """Nodes for one more instance."""

    nodes: Nodes
    leaf: Path
    cost: Cost
    explanation: tuple[str, ...]
    reservations: tuple[Reservation, ...]


@dataclass(frozen=True, slots=True)
class Removal:
    """Which instances to give up, in order; fewer than asked where a role would run empty."""

    names: tuple[str, ...]
    explanation: tuple[str, ...]


def cell_text(fabric: Fabric, cell: Cell) -> str:
    """`leaf-a: 2P1D`."""
    return f"{fabric.label(cell.leaf)}: {cell.prefill}P{cell.decode}D"
