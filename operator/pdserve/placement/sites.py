"""On which nodes the P/D groups of a scenario are, and what the loss of one node would take."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

from pdserve.placement.types import PlacedInstance, Site
from pdserve.terms import ROLES, Role


def site_of(members: Iterable[PlacedInstance]) -> Site:
    """Where the instances of one group are."""
    nodes: dict[Role, set[frozenset[str]]] = {role: set() for role in ROLES}
    for member in members:
        nodes[member.role].add(frozenset(member.nodes))
    return Site(frozenset(nodes["prefill"]), frozenset(nodes["decode"]))


def only_node(sites: Iterable[Site]) -> str | None:
    """A node that all instances have a member on, of both roles, the first by name.

    None without one.
    """
    found = tuple(sites)
    prefill, decode = ([n for s in found for n in getattr(s, role)] for role in ROLES)
    if not prefill or not decode:
        return None
    return min(frozenset.intersection(*prefill, *decode), default=None)


def fatal_nodes(sites: Iterable[Site]) -> frozenset[str]:
    """Nodes whose loss leaves no group with both roles; none while no group has both."""
    complete = [s for s in sites if s.prefill and s.decode]
    own = (frozenset.intersection(*s.prefill) | frozenset.intersection(*s.decode) for s in complete)
    return reduce(frozenset.intersection, own) if complete else frozenset()
