"""From counts per leaf to nodes: which node of the leaf each instance takes.

Best fit: the fullest node that still has room, by name among equals, so that big holes stay big.
The roles take turns, so that several nodes get both; where that does not fit, the larger shape
goes first, which is exact where one size divides the other. In the `uneven` case of `capacity` a
small search over the leaf's nodes finds the split that `capacity` promised.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pdserve.placement.capacity import Capacity, NodeRoom, join
from pdserve.terms import ROLES, Role
from pdserve.topology import Path


def nodes_in_leaf(
    capacity: Capacity, leaf: Path, prefills: int, decodes: int
) -> tuple[list[str], list[str]]:
    """Node names for so many prefills and decodes, sorted; the room must have been checked.

    Raises:
        AssertionError: the leaf has no such room (a bug of the caller).
    """
    nodes = capacity.nodes[leaf]
    if capacity.leaves[leaf].frontier is not None:
        return _search(capacity, nodes, prefills, decodes)
    size: dict[Role, int] = {"prefill": capacity.prefill.devices, "decode": capacity.decode.devices}
    count: dict[Role, int] = {"prefill": prefills, "decode": decodes}
    every = [(role, (k + 0.5) / count[role]) for role in ROLES for k in range(count[role])]
    in_turns = [role for role, _ in sorted(every, key=lambda entry: entry[1])]
    taken = _best_fit(capacity, nodes, size, in_turns)
    if taken is None:
        taken = _best_fit(capacity, nodes, size, sorted(in_turns, key=lambda role: -size[role]))
    assert taken is not None, f"leaf {leaf} has no room for {prefills}P{decodes}D"  # noqa: S101 - a bug
    return sorted(taken["prefill"]), sorted(taken["decode"])


def _best_fit(
    capacity: Capacity, nodes: tuple[NodeRoom, ...], size: Mapping[Role, int], order: Iterable[Role]
) -> Mapping[Role, list[str]] | None:
    """The nodes of instances put down in this order; None when one finds no room."""
    left: dict[Role, dict[str, int]] = {
        "prefill": {n.name: n.prefill for n in nodes},
        "decode": {n.name: n.decode for n in nodes},
    }
    if capacity.shared:
        left["decode"] = left["prefill"]
    taken: dict[Role, list[str]] = {"prefill": [], "decode": []}
    for role in order:
        pool = left[role]
        fitting = [(free, name) for name, free in pool.items() if free >= size[role]]
        if not fitting:
            return None
        _, name = min(fitting)
        pool[name] -= size[role]
        taken[role].append(name)
    return taken


def _search(
    capacity: Capacity, nodes: tuple[NodeRoom, ...], prefills: int, decodes: int
) -> tuple[list[str], list[str]]:
    """Walk back over frontiers of node prefixes, giving each node as few prefills as possible."""
    frontiers: list[tuple[int, ...]] = [(0,)]
    for node in nodes:
        frontiers.append(join(frontiers[-1], capacity.offers(node)))
    taken_p: list[str] = []
    taken_d: list[str] = []
    for k in range(len(nodes), 0, -1):
        before = frontiers[k - 1]
        for mine, offer in enumerate(capacity.offers(nodes[k - 1])[: prefills + 1]):
            need = max(0, decodes - offer)
            if prefills - mine < len(before) and need <= before[prefills - mine]:
                taken_p += [nodes[k - 1].name] * mine
                taken_d += [nodes[k - 1].name] * (decodes - need)
                prefills, decodes = prefills - mine, need
                break
    assert prefills == decodes == 0, "capacity promised more than the nodes hold"  # noqa: S101 - a bug
    return sorted(taken_p), sorted(taken_d)
