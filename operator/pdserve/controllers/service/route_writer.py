"""Writes the route table of one PDService (what is linked and ready) when it differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdserve.api import PDService, ScenarioGroup
from pdserve.controllers.service.seen import gateway_pods
from pdserve.controllers.shared.caches import owned_by
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.group_view import domain_of, view_group
from pdserve.controllers.shared.owned import ensure
from pdserve.controllers.shared.profiles import decode_batch, prefill_prediction
from pdserve.desired.group_wanted import models_of, slots_of, spare_rule
from pdserve.desired.objects import owned_metadata
from pdserve.desired.routing import (
    bounds_of,
    gateways_of,
    parse_routes,
    route_table,
    routed_instances,
    unnamed,
    version_floor,
)
from pdserve.desired.service_desired import acting_counts
from pdserve.frozen import Memo
from pdserve.groups.routable import routable
from pdserve.kube.cache import Cache
from pdserve.kube.ownership import NotOursError, is_controlled_by
from pdserve.kube.resource import Object, ObjectKey
from pdserve.terms.json import JsonMap
from pdserve.wire import names
from pdserve.wire.routes import RouteGroup, RouteTable, encoded

_texts: Memo[str] = Memo(most=256)


async def write_routes(
    context: OperatorContext,
    service: PDService,
    owner: JsonMap,
    readable: Mapping[str, ScenarioGroup],
) -> None:
    """Write the route table where its content changed; `readable`: ScenarioGroups by scenario.

    Raises:
        NotOursError: a foreign ConfigMap has its name.
        KubeError: the API server refused.
    """
    meta = service.metadata
    name = names.routes_configmap_name(meta.name)
    cache: Cache = context.caches.config_maps
    known = cache.get(name, meta.namespace)
    if known is not None and not is_controlled_by(known, meta.uid):
        raise NotOursError(cache.resource, known, meta.uid)
    last = parse_routes(known)
    models: dict[str, Mapping[str, tuple[str, str]]] = {}
    bounds, batches = {}, {}
    targets = {s.name: s.slo.value for s in service.spec.scenarios}
    rules = {s.name: s for s in service.spec.scenarios}
    groups, predicted = _unreadable_routes(context, service, last, frozenset(readable)), {}
    for scenario, group in readable.items():
        view = view_group(context, group)
        counts = acting_counts(group, rules.get(scenario), owned=True)
        rule = spare_rule(group, counts, routed_instances(last, scenario))
        groups[scenario] = routable(view.instances, view.tables, slots_of(view), rule)
        models[scenario] = models_of(view)
        links = context.linker.links(ObjectKey(meta.namespace, group.metadata.name))
        bounds[scenario] = bounds_of(groups[scenario], links)
        known_profile = prefill_prediction(cache, group, _usual_prompt(service, scenario))
        if known_profile is not None:
            predicted[scenario] = known_profile
        if scenario in targets:
            batches[scenario] = decode_batch(cache, group, targets[scenario])
    domain = domain_of(context.caches, service.spec.fabric.domain_ref.name)
    table = route_table(
        service, domain, groups, predicted, last, version_floor(known), models,
        bounds, gateways_of(service, gateway_pods(context, service)), batches,
    )  # fmt: skip
    text = _texts.of(lambda: encoded(table), table)
    wanted = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": owned_metadata(name, meta.namespace, meta.name, owner, "route-table"),
        "data": {names.KEY_ROUTES: text},
    }
    await ensure(context.client, cache, wanted)


def _unreadable_routes(
    context: OperatorContext, service: PDService, last: RouteTable | None, readable: frozenset[str]
) -> dict[str, Sequence[RouteGroup]]:
    """What gateways have of scenarios whose ScenarioGroup is there but cannot be read."""
    owned = owned_by(context.caches.groups, service.metadata)
    there = {name for obj in owned if (name := _scenario_of(obj)) is not None}
    kept = there - readable
    scenarios = last.scenarios if last else ()
    return {s.name: unnamed(s.groups) for s in scenarios if s.name in kept}


def _usual_prompt(service: PDService, scenario: str) -> float:
    found = (s for s in service.spec.scenarios if s.name == scenario)
    return next((float(s.expected.prompt_tokens) for s in found), 1.0)


def _scenario_of(obj: Object) -> str | None:
    spec = obj.get("spec")
    name = spec.get("scenario") if isinstance(spec, dict) else None
    return name if isinstance(name, str) and "deletionTimestamp" not in obj["metadata"] else None
