"""Warm spares: decodes of a P/D group that are linked like the others and get no requests.

Nothing marks a spare. A group keeps `Wanted.spares` decodes more than are asked for, and gateways
get as many as are asked for. So a spare takes over by one write, of the route table: when an
instance is lost, or is about to be, or when a group grows. Where a prefill is missing, a spare
flips its role (`flip`). What was lost is made anew meanwhile, and is the next spare.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from pdserve.groups.instances import InstanceObs


@dataclass(frozen=True, slots=True)
class SpareRule:
    """How many decodes of each P/D group get no requests."""

    spares: int = 0
    """At most this many."""
    decodes: int = 0
    """So many serve before one is a spare."""
    routed: Collection[str] = frozenset()
    """Names of the instances that gateways were last given: one that serves goes on serving."""


NO_SPARES = SpareRule()


def serving(members: Sequence[InstanceObs], rule: SpareRule) -> list[InstanceObs]:
    """Those of one group's routable instances that get requests, in the same order.

    An instance on a silent node is the first to stand back: it may be lost already.
    """
    decodes = [i for i in members if i.role == "decode"]
    over = min(rule.spares, len(decodes) - rule.decodes)
    if over <= 0:
        return list(members)
    ranked = sorted(decodes, key=lambda i: (i.silent, i.name not in rule.routed, i.created, i.name))
    back = {i.name for i in ranked[-over:]}
    return [i for i in members if i.name not in back]
