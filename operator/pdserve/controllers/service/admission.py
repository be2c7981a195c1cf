"""Whether the API server would take a PDService's pods: checked once per generation, by dry runs.

Only the cluster can tell, because admission and defaulting are its own. So one pod per role is
POSTed as a dry run, after `desired.templates` has accepted the template and before anything that
serves is changed.
"""

from __future__ import annotations

from pdserve.api import PDService
from pdserve.desired.templates import CONDITION, sample_group, sample_pod
from pdserve.engines.pod_parts import PodSettings
from pdserve.engines.pod_profile import Rights
from pdserve.groups.types import ConditionState
from pdserve.kube.client import KubeClient
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import PODS
from pdserve.terms import ROLES
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

_QUOTA = "exceeded quota"


async def ask_cluster(
    client: KubeClient, service: PDService, owner: JsonMap, rights: Rights, settings: PodSettings
) -> ConditionState:
    """Condition TemplateValid by the API server, for a template that `template_of_service` takes.

    Raises:
        KubeError: nothing could be said (no answer, server error).
    """
    group = sample_group(service, service.spec.scenarios[0], owner)
    for role in ROLES:
        problem = await _refusal(client, sample_pod(group, owner, role, rights, settings))
        if problem is not None:
            reason, message = problem
            return ConditionState(CONDITION, "False", reason, f"{role}: {message}")
    return ConditionState(CONDITION, "True", "Accepted", "the API server takes the rendered pods")


async def _refusal(client: KubeClient, pod: JsonObject) -> tuple[str, str] | None:
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
