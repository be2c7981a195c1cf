"""From counts per leaf to nodes: which node of the leaf each instance takes.

Best fit: the fullest node that still has room, by name among equals, so that big holes stay big.
The roles take turns, so that several nodes get both; where that does not fit, the larger shape
goes first, which is exact where one size divides the other. In the `uneven` case of `capacity` a
small search over the leaf's nodes finds the split that `capacity` promised.

The members of an instance go to one node where one has room for all, else to several of the leaf.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from pdserve.placement.capacity import Capacity, NodeRoom
from pdserve.placement.frontier import join
from pdserve.placement.types import Nodes, Shape
from pdserve.terms import ROLES, Role
from pdserve.topology import Path


def nodes_in_leaf(
    capacity: Capacity, leaf: Path, prefills: int, decodes: int
) -> tuple[list[Nodes], list[Nodes]]:
    """Nodes of so many prefills and decodes, sorted; the room must have been checked.

    Raises:
        AssertionError: the leaf has no such room (a bug of the caller).
    """
    nodes = capacity.nodes[leaf]
    shapes: dict[Role, Shape] = {"prefill": capacity.prefill, "decode": capacity.decode}
    if capacity.uneven(leaf):
        return _search(capacity, nodes, prefills, decodes)
    count: dict[Role, int] = {"prefill": prefills, "decode": decodes}
    every = [(role, (k + 0.5) / count[role]) for role in ROLES for k in range(count[role])]
    in_turns = [role for role, _ in sorted(every, key=lambda entry: entry[1])]
    taken = _best_fit(capacity, nodes, shapes, in_turns)
    if taken is None:
        by_size = sorted(in_turns, key=lambda role: -shapes[role].devices)
        taken = _best_fit(capacity, nodes, shapes, by_size)
    assert taken is not None, f"leaf {leaf} has no room for {prefills}P{decodes}D"  # noqa: S101 - a bug
    return sorted(taken["prefill"]), sorted(taken["decode"])


def _best_fit(
    capacity: Capacity,
    nodes: tuple[NodeRoom, ...],
    shapes: Mapping[Role, Shape],
    order: Iterable[Role],
) -> Mapping[Role, list[Nodes]] | None:
    """The nodes of instances put down in this order; None when one finds no room."""
    left: dict[Role, dict[str, int]] = {
        "prefill": {n.name: n.prefill for n in nodes},
        "decode": {n.name: n.decode for n in nodes},
    }
    if capacity.shared:
        left["decode"] = left["prefill"]
    taken: dict[Role, list[Nodes]] = {"prefill": [], "decode": []}
    for role in order:
        found = _put_down(left[role], shapes[role])
        if found is None:
            return None
        taken[role].append(found)
    return taken


def _put_down(free: dict[str, int], shape: Shape) -> Nodes | None:
    """The nodes of one instance, whose devices are taken off `free`; None when it has no room."""
    whole = [(have, name) for name, have in free.items() if have >= shape.total]
    found: list[str] = []
    for _ in range(shape.members):
        fitting = whole or [(have, n) for n, have in free.items() if have >= shape.devices]
        if not fitting:
            return None
        _, name = min(fitting)
        free[name] -= shape.devices
        found.append(name)
    return tuple(found)


def _search(
    capacity: Capacity, nodes: tuple[NodeRoom, ...], prefills: int, decodes: int
) -> tuple[list[Nodes], list[Nodes]]:
    """Nodes in the `uneven` case: each instance on a node of its own, or if need be on several."""
    p, d = capacity.prefill.members, capacity.decode.members
    offers = [capacity.offers(node) for node in nodes]
    whole = [tuple(most // d for most in offer[::p]) for offer in offers]
    found = _split(whole, prefills, decodes)
    if found is not None:
        return _named(nodes, found[0], p), _named(nodes, found[1], d)
    found = _split(offers, prefills * p, decodes * d)
    assert found is not None, "capacity promised more than the nodes hold"  # noqa: S101 - a bug
    return (
        _grouped([n for (n,) in _named(nodes, found[0], 1)], p),
        _grouped([n for (n,) in _named(nodes, found[1], 1)], d),
    )


def _split(
    offers: Sequence[tuple[int, ...]], prefills: int, decodes: int
) -> tuple[list[int], list[int]] | None:
    """How many of both each node takes; None when they do not fit.

    Walks back over frontiers of node prefixes, giving each node as few prefills as possible.
    """
    frontiers: list[tuple[int, ...]] = [(0,)]
    for offer in offers:
        frontiers.append(join(frontiers[-1], offer))
    if prefills >= len(frontiers[-1]) or decodes > frontiers[-1][prefills]:
        return None
    taken_p, taken_d = [0] * len(offers), [0] * len(offers)
    for k in range(len(offers), 0, -1):
        before = frontiers[k - 1]
        for mine, most in enumerate(offers[k - 1][: prefills + 1]):
            need = max(0, decodes - most)
            if prefills - mine < len(before) and need <= before[prefills - mine]:
                taken_p[k - 1], taken_d[k - 1] = mine, decodes - need
                prefills, decodes = prefills - mine, need
                break
    return taken_p, taken_d


def _named(nodes: Sequence[NodeRoom], counts: Iterable[int], members: int) -> list[Nodes]:
    """Each node, as often as it is taken by an instance of so many members."""
    pairs = zip(nodes, counts, strict=True)
    return sorted((node.name,) * members for node, count in pairs for _ in range(count))


def _grouped(nodes: Sequence[str], members: int) -> list[Nodes]:
    """Nodes of members as instances: first those that are on one node, then what is left over."""
    count = Counter(nodes)
    found = [(n,) * members for n in count for _ in range(count[n] // members)]
    rest = [n for n in count for _ in range(count[n] % members)]
    found += [tuple(rest[k : k + members]) for k in range(0, len(rest), members)]
    return sorted(found)
