"""Small builders for fabrics and groups, so that tests read like drawings.

A fabric is drawn one leaf a line, `pod leaf node:free ...`; `free` may be `free/capacity`, and
marks after `!` take a node out (`NotReady`, `Unschedulable`, `Tainted`, `Ending`: a
cloud takes it back in 30 s):

    p1 a  n1:8 n2:8
    p1 b  n3:4/8 n4:8!NotReady
"""

from __future__ import annotations

from collections.abc import Iterable

from pdserve.placement import GroupRequest, Mode, Placement, Shape
from pdserve.topology import Fabric, FabricLevel, NodeView, Taint, TreeSpec, build_fabric
from pdserve.topology.notices import EndSignal, Signal

RESOURCE = "example.com/npu"
SPOT = "cloud.google.com/impending-node-termination"
LABELS = ("example.com/pod", "example.com/leaf")
LEVELS = (FabricLevel("pod", LABELS[0], 3), FabricLevel("leaf", LABELS[1], 1))
SPEC = TreeSpec("test", LEVELS)


def draw(drawing: str) -> list[NodeView]:
    """Nodes of a drawing (see the module's docstring)."""
    nodes: list[NodeView] = []
    for line in drawing.strip().splitlines():
        pod, leaf, *cells = line.split()
        nodes += [_node(pod, leaf, cell) for cell in cells]
    return nodes


def fabric(
    drawing: str, cordoned: Iterable[tuple[str, str]] = (), end_seconds: float = 30.0
) -> Fabric:
    """The fabric of a drawing; `end_seconds`: from the notice of an `Ending` node to its end."""
    notices = (EndSignal("taint", SPOT, end_seconds),)
    spec = TreeSpec("test", LEVELS, cordoned=frozenset(cordoned), end_notices=notices)
    return build_fabric(spec, draw(drawing))


def request(
    counts: str,
    prefill: int = 8,
    decode: int | None = None,
    mode: Mode = "Preferred",
    level: str | None = None,
    exclude: Iterable[str] = (),
) -> GroupRequest:
    """`request("2P1D", 8)`: 2 prefills and 1 decode of 8 devices each (`decode` if it differs)."""
    p, d = counts.removesuffix("D").split("P")
    return GroupRequest(
        int(p),
        int(d),
        Shape(RESOURCE, prefill),
        Shape(RESOURCE, prefill if decode is None else decode),
        mode,
        level,
        frozenset(exclude),
    )


def cells(placement: Placement) -> dict[str, str]:
    """`{"a": "2P1D"}`: what each leaf got."""
    return {cell.leaf[-1]: f"{cell.prefill}P{cell.decode}D" for cell in placement.cells}


def _node(pod: str, leaf: str, cell: str) -> NodeView:
    name, _, rest = cell.partition(":")
    amounts, *marks = rest.split("!")
    free, _, capacity = amounts.partition("/")
    whole = int(capacity or free)
    return NodeView(
        name=name,
        labels={LABELS[0]: pod, LABELS[1]: leaf},
        capacity={RESOURCE: whole},
        allocatable={RESOURCE: whole},
        used={RESOURCE: whole - int(free)},
        ready="NotReady" not in marks,
        unschedulable="Unschedulable" in marks,
        taints=(Taint("example.com/npu", "yes", "NoSchedule"),) if "Tainted" in marks else (),
        signals=(Signal("taint", SPOT, None),) if "Ending" in marks else (),
    )
