"""Builds the route table of one PDService from what is linked and ready. Pure.

Which instances may be routed to is decided by `groups.routable` (architecture invariant 1); here
they are put beside the scenarios' rules and targets. The version rises only when the content
changes, so an unchanged service costs no write and gateways see no event.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from pdserve.api import PDService, RoCEDomain, Scenario
from pdserve.frozen import remembered
from pdserve.groups.routable import host
from pdserve.terms import Role
from pdserve.terms.json import JsonMap
from pdserve.topology import PodView
from pdserve.wire import names
from pdserve.wire.bounds import WireError, parse_json
from pdserve.wire.links import LinkReport
from pdserve.wire.routes import (
    MAX_GATEWAYS,
    RouteGateway,
    RouteGroup,
    RouteScenario,
    RouteTable,
    Served,
    fitted,
    served,
)

Models = Mapping[str, tuple[str, str]]
"""Model name and engine type of each known revision."""


class ContextBounds(NamedTuple):
    """What fits into the context of every engine of a scenario; 0 where no engine says it."""

    prompt_bytes: int = 0
    """UTF-8 bytes of a prompt's text."""
    model_len: int = 0
    """Tokens of prompt and answer together."""


def route_table(
    service: PDService,
    domain: RoCEDomain | None,
    groups: Mapping[str, Sequence[RouteGroup]],
    predicted: Mapping[str, tuple[float, float]],
    last: RouteTable | None,
    floor: int = 0,
    models: Mapping[str, Models] | None = None,
    bounds: Mapping[str, ContextBounds] | None = None,
    gateways: tuple[RouteGateway, ...] = (),
    batches: Mapping[str, int] | None = None,
) -> RouteTable:
    """The table that gateways should have now; `last` itself when nothing changed.

    Args:
        service: its scenarios, in order of priority.
        domain: gives hop costs per level; None while it is unknown: they stay as they are.
        groups: routable P/D groups per scenario name.
        predicted: `a, b` of predicted prefill seconds per scenario name, where known.
        last: the table that gateways have.
        floor: no gateway has seen a higher version; `last` may be an older table put back.
        models: what the revisions of each scenario's groups serve, by scenario name.
        bounds: `bounds_of` each scenario's groups, where known; else what gateways have stays.
        gateways: `gateways_of` the service.
        batches: most requests on one decode, by scenario name, where known.
    """
    known, found = models or {}, _bounds_in_force(bounds or {}, last)
    table = RouteTable(
        service=service.metadata.name,
        version=0 if last is None else last.version,
        model=service.spec.model.name,
        engine=str(service.spec.engine.type),
        tier_costs=_tier_costs(domain, last),
        scenarios=tuple(
            RouteScenario(
                name=scenario.name,
                slo=scenario.slo.value,
                groups=tuple(
                    _under_its_name(group, service, scenario, known.get(scenario.name, {}), last)
                    for group in groups.get(scenario.name, ())
                ),
                models=tuple(scenario.match.models),
                headers={k.lower(): v for k, v in scenario.match.headers.items()},
                prefill_seconds=predicted.get(scenario.name),
                max_prompt_bytes=found.get(scenario.name, ContextBounds()).prompt_bytes,
                max_model_len=found.get(scenario.name, ContextBounds()).model_len,
                prefix_affinity=scenario.prefix_affinity,
                local_prefill=scenario.local_prefill.mode,
                local_prefill_tokens=_local_tokens(scenario),
                limits=scenario.request_limits,
                decode_batch=(batches or {}).get(scenario.name, 0),
            )
            for scenario in service.spec.scenarios
        ),
        gateways=gateways,
    )
    table = fitted(table)
    if last is not None and table == last:
        return last
    return dataclasses.replace(table, version=max(floor, table.version) + 1)


def _local_tokens(scenario: Scenario) -> int:
    """Longest prompt that a decode computes in mode Fixed; 0 in the other modes."""
    local = scenario.local_prefill
    return (local.max_tokens or 0) if local.mode == "Fixed" else 0


def gateways_of(service: PDService, pods: Iterable[PodView]) -> tuple[RouteGateway, ...]:
    """The gateways that are ready, the oldest first; none where the service wants only one.

    `pods`: gateway pods of the service.
    """
    if service.spec.gateway.replicas < 2:
        return ()
    ready = (p for p in pods if p.ready.true and not p.deleting and p.ip)
    return tuple(
        RouteGateway(p.name, f"http://{host(p.ip)}:{names.PORT_METRICS}")
        for p in sorted(ready, key=lambda p: (p.created, p.name))[:MAX_GATEWAYS]
    )


def bounds_of(groups: Sequence[RouteGroup], links: Mapping[str, LinkReport]) -> ContextBounds:
    """The tightest bounds of the revisions that are routed.

    Of prompts prefills report, of the whole both roles. Instances of one revision and role are
    started alike, so what most of them report counts, and of as many the larger: one that reports
    nonsense turns no request away.
    """
    prompts: dict[str, list[int]] = {}
    lengths: dict[tuple[str, Role], list[int]] = {}
    for group in groups:
        for instance in group.instances:
            report = links.get(instance.id)
            if report is None:
                continue
            lengths.setdefault((group.revision, instance.role), []).append(report.max_model_len)
            if instance.role == "prefill":
                prompts.setdefault(group.revision, []).append(report.max_prompt_bytes)
    return ContextBounds(_tightest(prompts.values()), _tightest(lengths.values()))


def _tightest(reported: Iterable[list[int]]) -> int:
    """The least of what most report in each list; 0 (not known) counts nowhere."""
    most = (Counter(filter(None, values)) for values in reported)
    agreed = (max(found, key=lambda value: (found[value], value)) for found in most if found)
    return min(agreed, default=0)


def _bounds_in_force(
    known: Mapping[str, ContextBounds], last: RouteTable | None
) -> dict[str, ContextBounds]:
    """Bounds of each scenario: what is known now, else what gateways have."""
    found = dict(known)
    for scenario in () if last is None else last.scenarios:
        new = known.get(scenario.name, ContextBounds())
        found[scenario.name] = ContextBounds(
            new.prompt_bytes or scenario.max_prompt_bytes, new.model_len or scenario.max_model_len
        )
    return found


def unnamed(groups: Sequence[RouteGroup]) -> tuple[RouteGroup, ...]:
    """Groups without what only the route table adds to them."""
    return tuple(dataclasses.replace(g, models=(), model="", flow="") for g in groups)


def _under_its_name(
    group: RouteGroup,
    service: PDService,
    scenario: Scenario,
    models: Models,
    last: RouteTable | None,
) -> RouteGroup:
    """The group, with what it serves where that is not what the service asks for now.

    A group of another model keeps the names under which gateways last received it.
    """
    own = (service.spec.model.name, str(service.spec.engine.type))
    before = _before(group.revision, scenario.name, last)
    model, flow = models.get(group.revision) or (
        own if before is None else (before.model, before.flow)
    )
    if (model, flow) == own:
        return group
    names_now = tuple(scenario.match.models) or (own[0],)
    names = tuple(scenario.match.models) or (model,)
    if before is not None and before.model == model:
        names = before.names
    return dataclasses.replace(
        group,
        models=() if names == names_now else names,
        model="" if model == own[0] else model,
        flow="" if flow == own[1] else flow,
    )


def _before(revision: str, scenario: str, last: RouteTable | None) -> Served | None:
    """What the last table says that a revision serves."""
    for told in last.scenarios if last is not None else ():
        if told.name == scenario:
            groups = (g for g in told.groups if g.revision == revision)
            found = next(groups, None)
            return None if last is None or found is None else served(last, told, found)
    return None


def _tier_costs(domain: RoCEDomain | None, last: RouteTable | None) -> Mapping[str, int]:
    if domain is not None:
        return {level.name: level.hop_cost for level in domain.spec.levels}
    return {} if last is None else last.tier_costs


def parse_routes(config_map: JsonMap | None) -> RouteTable | None:
    """The route table in a ConfigMap; None when there is none or it cannot be read.

    An unreadable table is replaced; `version_floor` makes up for its lost version.
    """
    return None if config_map is None else _routes(config_map)


@remembered
def _routes(config_map: JsonMap) -> RouteTable | None:
    text = (config_map.get("data") or {}).get(names.KEY_ROUTES)
    if not text:
        return None
    try:
        return RouteTable.from_json(parse_json(text))
    except WireError:
        return None


def version_floor(config_map: JsonMap | None) -> int:
    """A version at least as high as any this object ever held: its resourceVersion, which rises
    with every write. A new object starts at 0: gateways tell by its uid.
    """
    return int((config_map or {}).get("metadata", {}).get("resourceVersion") or 0)


def routed_instances(table: RouteTable | None, scenario: str) -> frozenset[str]:
    """Ids (pod names) of the instances of a scenario in the table."""
    if table is None:
        return frozenset()
    return frozenset(
        i.id for s in table.scenarios if s.name == scenario for g in s.groups for i in g.instances
    )
