"""On which nodes the P/D groups of a scenario are, and what the loss of one node would take."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from pdserve.placement.types import PlacedInstance, Site
from pdserve.terms import ROLES, Role


def site_of(members: Iterable[PlacedInstance]) -> Site:
    """Where the instances of one group are."""
    nodes: dict[Role, set[str]] = {role: set() for role in ROLES}
    for member in members:
        nodes[member.role].add(member.node)
    return Site(frozenset(nodes["prefill"]), frozenset(nodes["decode"]))


def only_node(sites: Iterable[Site]) -> str | None:
    """The node that all instances are on, of both roles; None when there are several."""
    found = tuple(sites)
    prefill: frozenset[str] = frozenset().union(*(s.prefill for s in found))
    decode: frozenset[str] = frozenset().union(*(s.decode for s in found))
    return next(iter(prefill)) if prefill == decode and len(prefill) == 1 else None


def fatal_nodes(sites: Iterable[Site]) -> frozenset[str]:
    """Nodes whose loss leaves no group with both roles; none while no group has both."""
    complete = [s for s in sites if s.prefill and s.decode]
    own = (
        frozenset(n for nodes in (s.prefill, s.decode) if len(nodes) == 1 for n in nodes)
        for s in complete
    )
    return reduce(frozenset.intersection, own) if complete else frozenset()
