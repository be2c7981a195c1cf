"""Condition TemplateValid of a ScenarioGroup: whether pods may be made from its template.

The template of a group that a PDService made was checked there. A group written by hand is checked
here, and the Secret with the credentials of its pods is made here.
"""

from __future__ import annotations

from pdserve.api import ScenarioGroup
from pdserve.controllers.shared import event_reasons as reasons
from pdserve.controllers.shared.context import OperatorContext
from pdserve.desired.compare import controller_uid
from pdserve.desired.service_credentials import BadSecret
from pdserve.desired.templates import template_of_group, token_refusal
from pdserve.groups.types import ConditionState
from pdserve.kube.ownership import NotOursError, owner_reference
from pdserve.kube.resource import Object, ObjectKey


async def template_condition(
    context: OperatorContext, key: ObjectKey, obj: Object, group: ScenarioGroup
) -> ConditionState:
    """The condition; a refusal is an Event too, again when its message is another.

    Raises:
        KubeError: the API server did not answer for the Secret.
    """
    found = template_of_group(group, owner_reference(obj), context.rights)
    if found.status == "True" and not _made_by_service(context, key, obj, group):
        found = await _token(context, key, obj, group) or found
    known = next((c for c in group.status.conditions if c.type == found.type), None)
    if found.status == "False" and (known is None or known.message != found.message):
        context.events.event(obj, "Warning", reasons.TEMPLATE, found.message)
    return found


def _made_by_service(
    context: OperatorContext, key: ObjectKey, obj: Object, group: ScenarioGroup
) -> bool:
    """Whether its controller is the PDService that it names; anything else was forged."""
    service = context.caches.services.get(group.spec.service, key.namespace)
    return service is not None and controller_uid(obj) == service["metadata"]["uid"]


async def _token(
    context: OperatorContext, key: ObjectKey, obj: Object, group: ScenarioGroup
) -> ConditionState | None:
    """A group written by hand has no PDService that makes the Secret its pods need.

    Where a Secret of another owner has that name, its author must have a right to it: the
    refusal, or None.
    """
    service, namespace = group.spec.service, key.namespace
    if context.caches.services.get(service, namespace) is not None:
        return token_refusal(group, context.rights)
    try:
        await context.tokens.ensure(namespace, service, owner_reference(obj))
    except (NotOursError, BadSecret):
        return token_refusal(group, context.rights)
    return None
