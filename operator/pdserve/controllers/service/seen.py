"""Reads from the caches what the status of one PDService is made from."""

from __future__ import annotations

from collections.abc import Mapping

from pdserve.api import PDService, ScenarioGroup
from pdserve.controllers.shared.caches import BY_SERVICE, owned_by
from pdserve.controllers.shared.context import OperatorContext
from pdserve.desired import troubles
from pdserve.desired.objects import gateway_name
from pdserve.desired.service_status import Attainment
from pdserve.desired.troubles import Trouble
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import SECRETS, ObjectKey
from pdserve.topology import PodView


def devices_used(context: OperatorContext, groups: Mapping[str, ScenarioGroup]) -> dict[str, int]:
    """Devices that pods of these ScenarioGroups hold, by resource."""
    used: dict[str, int] = {}
    for group in groups.values():
        for pod in owned_by(context.caches.pods, group.metadata):
            for resource, count in pod.devices.items():
                used[resource] = used.get(resource, 0) + count
    return used


def gateway_pods(context: OperatorContext, service: PDService) -> tuple[PodView, ...]:
    """The gateway pods of a service, whatever their state."""
    key = (service.metadata.namespace, service.metadata.name)
    return context.caches.pods.by_index(BY_SERVICE, key)


def all_gateways_ready(context: OperatorContext, service: PDService) -> bool:
    """Whether no gateway pod of the service is on its way up or down."""
    return gateways_ready(context, service) == len(gateway_pods(context, service))


def gateways_ready(context: OperatorContext, service: PDService) -> int:
    """How many gateway pods are ready and stay."""
    return sum(pod.ready.true and not pod.deleting for pod in gateway_pods(context, service))


async def troubles_of(
    context: OperatorContext, service: PDService, groups: Mapping[str, ScenarioGroup]
) -> list[Trouble]:
    """What keeps pods of the service from running; asks the API server for the keys' Secret.

    Raises:
        KubeError: the API server does not say whether there is that Secret.
    """
    caches, meta = context.caches, service.metadata
    found: list[Trouble] = []
    for _, group in sorted(groups.items()):
        found += troubles.of_instances(owned_by(caches.pods, group.metadata))
        found += troubles.of_group(group)
        found += troubles.of_repairs(group, context.now())
    deployment = caches.deployments.get(gateway_name(meta.name), meta.namespace)
    found += troubles.of_gateways(gateway_pods(context, service), deployment)
    auth = service.spec.gateway.auth
    if auth is not None and not gateways_ready(context, service):
        # The kubelet says in an Event only that a volume's Secret is not there.
        found += await _missing(context, service, auth.secret_ref.name)
    return found


async def _missing(context: OperatorContext, service: PDService, secret: str) -> list[Trouble]:
    try:
        await context.client.get(SECRETS, secret, service.metadata.namespace)
    except KubeError as error:
        if not error.is_not_found:
            raise
        message = f"gateway.auth.secretRef: there is no Secret {secret!r}"
        return [Trouble(troubles.SECRET_MISSING, message)]
    return []


def attainment_by_scenario(
    context: OperatorContext, service: PDService, groups: Mapping[str, ScenarioGroup]
) -> dict[str, Attainment]:
    """What the ratio loop last measured, by scenario."""
    namespace = service.metadata.namespace
    found = {
        name: context.attainment.get(ObjectKey(namespace, group.metadata.name))
        for name, group in groups.items()
    }
    return {name: a for name, a in found.items() if a is not None}
