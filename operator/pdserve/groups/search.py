"""Where one more instance of a group goes: the request, and the policy for growth and stand-ins.

Neighbours: `resize` and `evictions` call it; `repairs.Suspects` lists the nodes to avoid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.groups.claims import after_those_ahead
from pdserve.groups.repairs import suspects
from pdserve.groups.types import Observation
from pdserve.groups.view import GroupView, PlanDraft
from pdserve.placement import InstancePlacement, NoFit, PlacedInstance, place_instance
from pdserve.terms import Role
from pdserve.topology import Fabric, Path


@dataclass(frozen=True, slots=True)
class InstanceSearch:
    """One more instance of a role in a group.

    `members`: the group's instances, those of this plan included. `near`: the leaf of the instance
    that it replaces, None where that is unknown or there is none.
    """

    group: GroupView
    role: Role
    near: Path | None
    members: Sequence[PlacedInstance]
    observation: Observation
    draft: PlanDraft

    def on(self, fabric: Fabric) -> InstancePlacement | NoFit:
        """A node of this fabric, as far from suspect nodes as there is one."""
        now, draft = self.observation, self.draft
        bad = suspects(draft.repairs, now.now, draft.fabric, now.bettered)
        beside = draft.beside(now.wanted.revision, self.group.index)

        def without(nodes: frozenset[str]) -> InstancePlacement | NoFit:
            request = now.wanted.group_request(nodes, beside)
            return place_instance(fabric, request, self.role, self.members, self.near)

        return bad.away_from(without)

    def spare(self) -> InstancePlacement | NoFit:
        """A node among those that groups waiting before it leave."""
        return self.on(after_those_ahead(self.draft.fabric, self.observation))
