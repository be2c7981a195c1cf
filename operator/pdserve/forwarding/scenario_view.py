"""The routable instances of one scenario, in their P/D groups, across route table versions.

Records of instances that stay keep what was learned; an instance that left the table is never
chosen for a new request (architecture invariant 1). Requests already in its group run on with the
records they hold, and go on from a prefill to a decode of the group. Neighbours: `instance` is one
record; `dispatch` and `decode` choose from this view.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pdserve.forwarding.choice_index import ChoiceIndex
from pdserve.forwarding.instance import Instance
from pdserve.forwarding.ranking import NEVER
from pdserve.terms import Role
from pdserve.wire.routes import RouteScenario


@dataclass(frozen=True, slots=True)
class Group:
    """One P/D group: a request stays inside it from prefill to decode."""

    index: int
    prefills: tuple[Instance, ...]
    decodes: tuple[Instance, ...]
    handoff: float
    """Target for the time between tokens 1 and 2."""

    def decode_credit(self, now: float) -> int:
        """Decode places left when everything that is in prefill here has moved on.

        A request between its two legs occupies the prefill and has asked a decode: it counts once.
        """
        in_prefill = sum(p.used for p in self.prefills)
        asking = sum(d.legs for d in self.decodes)
        return sum(d.credit(now, self.handoff) for d in self.decodes) - max(0, in_prefill - asking)

    def next_credit(self, now: float) -> float:
        """When decode credit may return without an event of our own; NEVER if only by one.

        Monotonic seconds, as `now`.
        """
        return min((d.next_credit(now) for d in self.decodes), default=NEVER)


class View:
    """Groups of one scenario; `update` swaps in a new route table's."""

    def __init__(self, scenario: RouteScenario, tier_costs: Mapping[str, int]) -> None:
        self._instances: dict[tuple[str, str], Instance] = {}
        self.update(scenario, tier_costs)

    def update(self, scenario: RouteScenario, tier_costs: Mapping[str, int]) -> None:
        """Follow a route table; an id at a new endpoint is a new instance, without history.

        `tier_costs`: hop cost by level of the tree.
        """
        self.scenario = scenario
        self.tier_costs = tier_costs
        known, self._instances = self._instances, {}
        for record in known.values():
            record.watch(None)
        self.index = ChoiceIndex()
        groups = []
        for group in scenario.groups:
            by_role: dict[Role, list[Instance]] = {"prefill": [], "decode": []}
            for route in group.instances:
                key = (route.id, route.endpoint)
                record = known.get(key) or Instance(route, group.index)
                record.route = route
                record.limit = scenario.decode_batch if route.role == "decode" else 0
                self._instances[key] = record
                by_role[route.role].append(record)
            prefills, decodes = tuple(by_role["prefill"]), tuple(by_role["decode"])
            groups.append(Group(group.index, prefills, decodes, scenario.slo.handoff))
            self.index.add(group.index, prefills, decodes, scenario.slo.handoff, tier_costs)
        self.groups = tuple(groups)
        self._by_index = {g.index: g for g in groups}
        self.prefill_count = sum(len(g.prefills) for g in groups)

    def group(self, index: int) -> Group | None:
        """A group by index; None once it left the table."""
        return self._by_index.get(index)

    def instances(self) -> Iterator[Instance]:
        """Every routed instance."""
        return iter(self._instances.values())

    @property
    def slots(self) -> int:
        """How many slots all routed instances have together, by the route table."""
        return sum(i.route.slots for i in self._instances.values())

    def distance(self, a: Instance, b: Instance) -> int:
        """Hop cost between two instances, 0 or more: the sum over levels at which they differ."""
        ours, theirs = a.route.domains, b.route.domains
        return sum(
            c for level, c in self.tier_costs.items() if ours.get(level) != theirs.get(level)
        )
