"""Everything `kubectl pdserve` shows, read once from the API server.

Reading is here, wording is in `view_status` and `view_explain`, so that both can be tested on
plain values.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass

from pdserve import api
from pdserve.cli.ask_stream import PodProxy
from pdserve.cli.ask_target import gateways
from pdserve.controllers.shared.profiles import KEY as PROFILE_KEY
from pdserve.controllers.shared.profiles import profile_configmap_name
from pdserve.desired.objects import COMPONENT
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONFIGMAPS, NODES, PODS, Resource
from pdserve.ratio.learn import LearnState
from pdserve.ratio.profile import PerformanceProfile
from pdserve.ratio.records import RecordError, from_json
from pdserve.terms.json import JsonObject
from pdserve.wire import names
from pdserve.wire.calls import PATH_METRICS

SERVICES = Resource(names.GROUP, names.VERSION, "pdservices", "PDService")
GROUPS = Resource(names.GROUP, names.VERSION, "scenariogroups", "ScenarioGroup")
DOMAINS = Resource(names.GROUP, names.VERSION, "rocedomains", "RoCEDomain", namespaced=False)


class NotFoundError(Exception):
    """No such PDService; the message names those that exist."""


@dataclass(frozen=True)
class Snapshot:
    """One PDService with what belongs to it. Pods are raw JSON, of instances only."""

    service: api.PDService
    groups: tuple[api.ScenarioGroup, ...]
    pods: tuple[JsonObject, ...]


@dataclass(frozen=True)
class FabricState:
    """What placement would look at now: raw Nodes and all their pods."""

    domain: api.RoCEDomain
    nodes: tuple[JsonObject, ...]
    pods: tuple[JsonObject, ...]


@dataclass(frozen=True)
class NoRight:
    """The reader may not see the fabric: it belongs to the cluster, not to a namespace."""

    message: str
    """The API server's."""


async def read_services(
    client: KubeClient, namespace: str | None, name: str | None
) -> Sequence[Snapshot]:
    """All PDServices of a namespace (None: of all), or the one named.

    Raises:
        NotFoundError: `name` is not there.
        KubeError: the API server said no, or nothing.
    """
    services = [api.PDService.stored(o) for o in (await client.list(SERVICES, namespace)).items]
    if name is not None:
        chosen = [s for s in services if s.metadata.name == name]
        if not chosen:
            there = ", ".join(sorted(f"{s.metadata.name}" for s in services)) or "none"
            raise NotFoundError(
                f"PDService {name!r} is not in namespace {namespace!r}; there: {there}"
            )
        services = chosen
    groups = [api.ScenarioGroup.stored(o) for o in (await client.list(GROUPS, namespace)).items]
    pods = (await client.list(PODS, namespace, label_selector=names.LABEL_INSTANCE)).items
    return [_snapshot(s, groups, pods) for s in services]


async def read_gateways(
    client: KubeClient, service: api.PDService, proxy: PodProxy
) -> dict[str, str | KubeError]:
    """Metrics of each ready gateway of a service by its pod's name, or why there are none.

    Raises:
        KubeError: the API server lists no pods.
    """
    namespace, name = service.metadata.namespace, service.metadata.name
    selector = f"{names.LABEL_COMPONENT}={COMPONENT},{names.LABEL_SERVICE}={name}"
    pods = (await client.list(PODS, namespace, label_selector=selector)).items
    found: dict[str, str | KubeError] = {}
    for pod in gateways(pods):
        try:
            found[pod.name] = await proxy.read(namespace, pod, PATH_METRICS)
        except KubeError as error:
            found[pod.name] = error
    return found


def _snapshot(
    service: api.PDService, groups: Sequence[api.ScenarioGroup], pods: Sequence[JsonObject]
) -> Snapshot:
    namespace, name = service.metadata.namespace, service.metadata.name
    order = {s.name: i for i, s in enumerate(service.spec.scenarios)}
    mine = [g for g in groups if g.metadata.namespace == namespace and g.spec.service == name]
    return Snapshot(
        service,
        tuple(sorted(mine, key=lambda g: (order.get(g.spec.scenario, 99), g.metadata.name))),
        tuple(
            p
            for p in pods
            if p["metadata"]["namespace"] == namespace
            and p["metadata"]["labels"].get(names.LABEL_SERVICE) == name
        ),
    )


async def read_fabric(client: KubeClient, domain: str) -> FabricState | NoRight | None:
    """The named RoCEDomain with nodes and pods; None where it does not exist."""
    try:
        found = api.RoCEDomain.stored(await client.get(DOMAINS, domain))
        nodes, pods = await asyncio.gather(client.list(NODES), client.list(PODS))
    except KubeError as error:
        if error.is_not_found:
            return None
        if error.is_forbidden:
            return NoRight(error.message)
        raise
    return FabricState(found, nodes.items, pods.items)


async def read_profile(
    client: KubeClient, group: api.ScenarioGroup
) -> PerformanceProfile | NoRight | None:
    """What the operator learned of a scenario's instances; None where that is nothing readable."""
    name = profile_configmap_name(group.metadata.name)
    try:
        found = await client.get(CONFIGMAPS, name, group.metadata.namespace)
    except KubeError as error:
        if error.is_not_found:
            return None
        if error.is_forbidden:
            return NoRight(error.message)
        raise
    text = (found.get("data") or {}).get(PROFILE_KEY)
    try:
        return from_json(LearnState, text).profile() if text else None
    except RecordError:
        return None
