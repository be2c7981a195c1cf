"""The second instance of a role: what a scenario loses when its only prefill or decode is lost.

One instance of a role answers every request of the scenario. When it is lost, or when each request
suddenly costs it several times as much (the prefix cache went, prompts of another kind came), all
requests miss until another one has started. Where the other role has enough instances, a second one
costs little beside that: it is kept although the load does not need it.
"""

from __future__ import annotations

from pdserve.ratio.types import Counts
from pdserve.terms import ROLES

WORTH = 4
"""Instances of the other role from which on a role has two: they are a sixth more at most."""


def is_redundant(counts: Counts) -> bool:
    """Whether no role depends on one instance beside `WORTH` or more of the other."""
    return all(counts.total(role) > 1 for role in ROLES) or all(
        counts.total(role) < WORTH for role in ROLES
    )
