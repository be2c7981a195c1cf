"""The action that ends a role flip. `types` has the other actions, `flip` the rules."""

from __future__ import annotations

from dataclasses import dataclass

from pdserve.terms import Role


@dataclass(frozen=True, slots=True)
class FlipRole:
    """Give an idle, unlinked pod its new role label, and take its drain back, in one write."""

    name: str
    uid: str
    role: Role
