"""May these pods be made? Whether a template keeps to what its author may ask for. Pure.

Asked at every look, of ScenarioGroups written by hand too; `controllers.service.admission` asks the
cluster. A rejected template never reaches the ScenarioGroups, and a ScenarioGroup with one makes no
pod: what serves goes on as it is.
"""

from __future__ import annotations

from pdserve.api import PDService, Scenario, ScenarioGroup, revision_of
from pdserve.desired.objects import gateway_pod
from pdserve.desired.service_desired import scenario_group
from pdserve.engines.pod_parts import PodSettings
from pdserve.engines.pod_profile import TOKEN_FIELD, Finding, Rights
from pdserve.engines.pods import DEFAULTS, EngineUnusableError, render_pod
from pdserve.engines.registry import UnknownEngineError
from pdserve.engines.template_errors import NotAllowedError, TemplateError
from pdserve.frozen import Memo
from pdserve.groups.types import ConditionState, NewPod
from pdserve.terms import ROLES, Role
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

CONDITION = "TemplateValid"
PROTECTED = "ProtectedField"
NOT_ALLOWED = "NotAllowed"
UNKNOWN_ENGINE = "UnknownEngine"
BROKEN_ENGINE = "BrokenEngine"


def template_of_group(group: ScenarioGroup, owner: JsonMap, rights: Rights) -> ConditionState:
    """Condition TemplateValid of a ScenarioGroup: may pods be made from it? Pure."""
    by = (group.metadata.namespace, group.metadata.name)
    return _found.of(lambda: _of_group(group, owner, rights), group.spec, rights, by=by)


_found: Memo[ConditionState] = Memo()


def _of_group(group: ScenarioGroup, owner: JsonMap, rights: Rights) -> ConditionState:
    for role in ROLES:
        try:
            sample_pod(group, owner, role, rights)
        except TemplateError as error:
            return _refused(f"{role}: {error}", error)
    return ConditionState(
        CONDITION, "True", "Accepted", "the templates ask for nothing they may not"
    )


def token_refusal(group: ScenarioGroup, rights: Rights) -> ConditionState | None:
    """Refusal of a ScenarioGroup written by hand whose service's token belongs to another owner.

    Its pods would be given the Secret by the name of `spec.service`. None where the allow list or
    the API server says that the author may have it.
    """
    secret = names.token_secret_name(group.spec.service)
    finding = Finding(TOKEN_FIELD, "spec.service", secret, "must be a service of its own")
    if rights.permits(finding, group.metadata.namespace):
        return None
    message = (
        f"spec.service: {group.spec.service}: Secret {secret} belongs to another owner; an "
        f"administrator can allow it with security.allowedPodFields: ['{TOKEN_FIELD}={secret}']"
    )
    return ConditionState(CONDITION, "False", NOT_ALLOWED, message)


def template_of_service(service: PDService, owner: JsonMap, rights: Rights) -> ConditionState:
    """The same for the ScenarioGroups that a PDService would make. Pure."""
    by = (service.metadata.namespace, service.metadata.name)
    return _found.of(lambda: _of_service(service, owner, rights), service.spec, rights, by=by)


def _of_service(service: PDService, owner: JsonMap, rights: Rights) -> ConditionState:
    try:
        gateway_pod(service, "", "", rights)
    except TemplateError as error:
        return _refused(f"gateway: {error}", error)
    return template_of_group(sample_group(service, service.spec.scenarios[0], owner), owner, rights)


def _refused(message: str, error: TemplateError) -> ConditionState:
    if isinstance(error, EngineUnusableError):
        unknown = isinstance(error.cause, UnknownEngineError)
        reason = UNKNOWN_ENGINE if unknown else BROKEN_ENGINE
        return ConditionState(CONDITION, "False", reason, message)
    reason = NOT_ALLOWED if isinstance(error, NotAllowedError) else PROTECTED
    return ConditionState(CONDITION, "False", reason, message)


def sample_group(service: PDService, scenario: Scenario, owner: JsonMap) -> ScenarioGroup:
    """The ScenarioGroup that a PDService would make for `scenario`."""
    return ScenarioGroup.parse(scenario_group(service, scenario, owner))


def sample_pod(
    group: ScenarioGroup, owner: JsonMap, role: Role, rights: Rights,
    settings: PodSettings = DEFAULTS,
) -> JsonObject:  # fmt: skip
    """A pod of `role` as it would be made.

    Raises:
        TemplateError: the template asks for what it may not.
    """
    name = f"{names.slot_name(group.metadata.name, 0, role, 0)}-dryrun"
    new = NewPod(
        name=name,
        slot=name,
        role=role,
        group_index=0,
        revision=revision_of(group.spec),
        node="dry-run",
    )
    return render_pod(group, new, owner, rights, settings=settings)
