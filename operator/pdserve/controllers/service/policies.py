"""Keeps the NetworkPolicies of one PDService equal to those it asks for; deletes its other ones."""

from __future__ import annotations

from pdserve.api import PDService
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.owned import delete_owned, ensure
from pdserve.desired.compare import covers
from pdserve.desired.network_policy import network_policies, policy_names
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import is_controlled_by
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap


async def keep_policies(
    context: OperatorContext, service: PDService, owner: JsonMap
) -> list[tuple[str, str]]:
    """Make the NetworkPolicies that are asked for, delete those that no longer are.

    Returns reason and message of each that the API server finds invalid.

    Raises:
        NotOursError: a foreign NetworkPolicy has the name of one.
        KubeError: the API server refused otherwise.
    """
    client, cache = context.client, context.caches.network_policies
    meta = service.metadata
    problems: list[tuple[str, str]] = []
    wanted = network_policies(service, owner, context.operator_namespace)
    for policy in wanted:
        try:
            await ensure(client, cache, policy, _same_spec)
        except KubeError as error:
            if not error.is_invalid:
                raise
            problems.append(("NetworkPolicyRefused", error.message))
    if wanted:
        return problems
    for name in policy_names(meta.name):
        found = cache.get(name, meta.namespace)
        if found is None or not is_controlled_by(found, meta.uid):
            continue
        await delete_owned(client, cache, found)
    return problems


def _same_spec(live: Object, wanted: Object) -> bool:
    """Metadata as wanted, and the spec both ways: a rule taken out is a change."""
    return covers(live, wanted) and bool(live["spec"] == wanted["spec"])
