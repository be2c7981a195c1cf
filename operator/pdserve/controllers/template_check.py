"""Would the API server take the pods of a PDService? Renders one per role and dry-runs its POST.

Admission and defaulting are the cluster's, so only the cluster can say. A rejected template never
reaches the ScenarioGroups: what serves goes on as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pdserve.api import PDService, Scenario, ScenarioGroup, revision_of
from pdserve.controllers.service_desired import scenario_group
from pdserve.engines.pods import render_pod
from pdserve.engines.pods_template import TemplateError
from pdserve.groups.types import Condition, NewPod
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import PODS
from pdserve.wire import names
from pdserve.wire.peers import ROLES, Role

CONDITION = "TemplateValid"
_QUOTA = "exceeded quota"


async def check_template(
    client: KubeClient, service: PDService, owner: Mapping[str, Any]
) -> Condition:
    """Condition TemplateValid for the spec as it is.

    Raises:
        KubeError: nothing could be said (no answer, server error).
    """
    for role in ROLES:
        problem = await _refusal(client, service, owner, role)
        if problem is not None:
            reason, message = problem
            return Condition(CONDITION, "False", reason, f"{role}: {message}")
    return Condition(CONDITION, "True", "Accepted", "the API server takes the rendered pods")


async def _refusal(
    client: KubeClient, service: PDService, owner: Mapping[str, Any], role: Role
) -> tuple[str, str] | None:
    try:
        pod = _sample(service, service.spec.scenarios[0], owner, role)
    except TemplateError as error:
        return "ProtectedField", str(error)
    try:
        await client.create(PODS, pod, field_manager=names.FIELD_MANAGER, dry_run=True)
    except KubeError as error:
        if error.is_invalid or error.status == 400:
            return "Invalid", error.message
        # A full quota says nothing about the template: creating the pods will say it.
        if error.is_forbidden and _QUOTA not in error.message:
            return "Forbidden", error.message
        if not error.is_already_exists and not error.is_forbidden:
            raise
    return None


def _sample(
    service: PDService, scenario: Scenario, owner: Mapping[str, Any], role: Role
) -> dict[str, Any]:
    group = ScenarioGroup.parse(scenario_group(service, scenario, owner))
    name = f"{names.slot_name(group.metadata.name, 0, role, 0)}-dryrun"
    new = NewPod(
        name=name,
        slot=name,
        role=role,
        group_index=0,
        revision=revision_of(group.spec),
        node="dry-run",
    )
    return render_pod(group, new, owner)
