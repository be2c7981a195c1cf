"""Renders the pod of one instance: what its engine type adds, and what the operator relies on.

`pod_parts` says what an engine type gives. `groups` decides who and where (a slot pinned to a
node); this module turns that into a manifest; `controllers` POSTs it. Everything another component
relies on (labels, readiness gate, ports, the PDSERVE_* variables) is set here and protected from
the user's template (`pods_template`).
Imports `api`, so the gateway must not import it (`engines.flow` is the gateway's side).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol

from pdserve.api import RoleTemplate, ScenarioGroup
from pdserve.engines import registry
from pdserve.engines.model_volume import ModelParts, check_rights, model_parts, weights_path
from pdserve.engines.pod_members import LEADER_ADDRESS, LEADER_VOLUME, await_leader, member_env
from pdserve.engines.pod_parts import InstanceFacts, PodParts, PodSettings
from pdserve.engines.pod_profile import Rights
from pdserve.engines.pods_template import ENGINE_CONTAINER, apply_template, hardened
from pdserve.engines.registry import BrokenEngineError, EngineTypeError
from pdserve.engines.role_flip import may_flip, role_variable
from pdserve.engines.template_errors import TemplateError
from pdserve.terms import Role
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import calls, names
from pdserve.wire.pin import pin_to

COMPONENT = "instance"
NO_RIGHTS = Rights()
GRACE_AFTER_DRAIN = 15
"""Seconds that a terminating engine gets beyond the drain, to close and exit."""
BASE_TOLERATIONS: tuple[Mapping[str, str], ...] = tuple(
    {"key": f"node.kubernetes.io/{taint}", "operator": "Exists", "effect": "NoExecute"}
    for taint in ("not-ready", "unreachable")
)
"""The operator decides when an instance is lost; without these Kubernetes would delete healthy
pods after a five-minute partition."""
DEFAULT_REQUESTS: Mapping[str, str] = {"cpu": "100m", "memory": "256Mi"}
"""What an engine asks for beside its devices, where its template says nothing: enough not to be
the first that a full node evicts, little enough to fit beside others. Not part of the revision."""
PROXY_CONTAINER = "engine-proxy"
PROXY_COMMAND = ("/opt/pdserve/bin/python", "-m", "pdserve.engineproxy")
PROXY_LIVE = "/livez"
PROXY_RESOURCES: Mapping[str, Mapping[str, str]] = {
    "requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"},
}  # fmt: skip
"""It holds bodies of the requests that run."""
_PROXY_STATE = "/tmp/pdserve-proxy.json"  # noqa: S108 - the pod's own, kept while it lives
_STARTUP_PERIOD = 2
_TMP_VOLUME = "pdserve-tmp"
"""A name that no site's template uses by chance: volumes are merged by name."""
_CONTROL_VOLUME = "pdserve-control"
_CONTROL_DIR = "/etc/pdserve/control"


DEFAULTS = PodSettings()


class EngineUnusableError(TemplateError):
    """No pod can be made for the spec's engine type.

    Attributes:
        cause: why.
    """

    def __init__(self, cause: EngineTypeError) -> None:
        self.cause = cause
        self.path = "engine.type"
        ValueError.__init__(self, f"engine.type: {cause}")


class PodSlot(Protocol):
    """What the plan fixes of a new pod (structurally `groups.types.NewPod`)."""

    @property
    def name(self) -> str:
        """Of the pod."""

    @property
    def role(self) -> Role:
        """Prefill or decode."""

    @property
    def group_index(self) -> int:
        """Index from 0 of its P/D group in the ScenarioGroup."""

    @property
    def revision(self) -> str:
        """Of the template it is made from."""

    @property
    def node(self) -> str:
        """Where it runs."""

    @property
    def domains(self) -> Mapping[str, str]:
        """Level -> domain of the fabric that its node is in."""

    @property
    def replaces(self) -> str | None:
        """Uid of the instance whose place it takes; None for a new place."""

    @property
    def scale_unit(self) -> bool:
        """Whether it stands for its group in the scale subresource."""

    @property
    def instance(self) -> str:
        """Name of the instance that it is a member of."""

    @property
    def member(self) -> int:
        """Which member of the instance it is, from 0; 0 is the leader."""

    @property
    def members(self) -> int:
        """How many members the instance has, 1 or more."""

    @property
    def leader_uid(self) -> str:
        """Uid of the leader's pod; empty for the leader itself."""


def role_template(group: ScenarioGroup, role: Role) -> RoleTemplate:
    """The template of one role."""
    return group.spec.prefill if role == "prefill" else group.spec.decode


def render_pod(
    group: ScenarioGroup,
    new: PodSlot,
    owner_ref: JsonMap,
    rights: Rights | None = NO_RIGHTS,
    control: str = "",
    settings: PodSettings = DEFAULTS,
) -> JsonObject:
    """The manifest to POST for one instance.

    Args:
        group: the ScenarioGroup it belongs to.
        new: slot, role, node and revision, from the plan.
        owner_ref: controller reference to the ScenarioGroup.
        rights: what templates may ask for beyond the restricted Pod Security profile; None:
            anything, for a pod that is not going to run.
        control: digests of the control credentials that the engine accepts, one a line; empty
            only where the pod is not going to run.
        settings: of the operator.

    Raises:
        EngineUnusableError: there is no adapter for the engine's type, or it fails.
        NotAllowedError: the spec names a Secret for its weights and `rights` does not give it.
        TemplateError: the role's template touches a field that is not its own, or asks for more
            than `rights` gives.
    """
    role = role_template(group, new.role)
    check_rights(group.spec.model.source, group.metadata.namespace, rights)
    parts = _parts(group, new.role, role, new)
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": new.name,
            "namespace": group.metadata.namespace,
            "labels": _labels(group, new),
            "annotations": {**_annotations(group, new, parts), names.ANNOTATION_CONTROL: control},
            "ownerReferences": [dict(owner_ref)],
        },
        "spec": _spec(group, new, role, parts, settings),
    }
    if role.template is None:
        return pod
    return apply_template(pod, role.template.to_dict(), role.instance.resource, rights)


def _labels(group: ScenarioGroup, new: PodSlot) -> dict[str, str]:
    labels = {
        "app.kubernetes.io/name": "pdserve",
        names.LABEL_COMPONENT: COMPONENT,
        names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
        names.LABEL_SERVICE: group.spec.service,
        names.LABEL_SCENARIO: group.spec.scenario,
        names.LABEL_GROUP_INDEX: str(new.group_index),
        names.LABEL_ROLE: new.role,
        names.LABEL_INSTANCE: new.instance,
        names.LABEL_REVISION: new.revision,
        **{names.TOPOLOGY_PREFIX + level: value for level, value in new.domains.items()},
    }
    if new.scale_unit:
        labels[names.LABEL_SCALE_UNIT] = "true"
    if new.members > 1:
        labels[names.LABEL_MEMBER] = str(new.member)
    return labels


def _parts(group: ScenarioGroup, name: Role, role: RoleTemplate, new: PodSlot) -> PodParts:
    """What the engine's adapter gives; raises EngineUnusableError, whatever the adapter raises."""
    other = role_template(group, "decode" if name == "prefill" else "prefill")
    facts = InstanceFacts(
        role=name,
        slots=role.max_concurrency,
        devices=role.instance.devices_per_node,
        model=group.spec.model.name,
        weights=weights_path(group.spec.model.source),
        peer_slots=other.max_concurrency,
        peer_devices=other.instance.devices,
        member=new.member,
        members=new.members,
    )
    try:
        return registry.pod(group.spec.engine.type).parts(facts)
    except EngineTypeError as error:
        raise EngineUnusableError(error) from error
    except Exception as error:  # code of others
        broken = BrokenEngineError(f"{group.spec.engine.type!r}: {type(error).__name__}: {error}")
        raise EngineUnusableError(broken) from error


def _annotations(group: ScenarioGroup, new: PodSlot, parts: PodParts) -> dict[str, str]:
    annotations = {}
    if parts.health_path:
        annotations[names.ANNOTATION_METRICS_SCRAPE] = "true"
        annotations[names.ANNOTATION_METRICS_PORT] = str(names.PORT_HTTP)
    if parts.metrics_path != calls.PATH_METRICS:
        annotations[names.ANNOTATION_METRICS_PATH] = parts.metrics_path
    if may_flip(group, parts):
        annotations[names.ANNOTATION_FLIPS] = "true"
    if new.replaces:
        annotations[names.ANNOTATION_REPLACES] = new.replaces
    if new.members > 1:
        annotations[names.ANNOTATION_MEMBERS] = str(new.members)
    if new.leader_uid:
        annotations[names.ANNOTATION_LEADER] = new.leader_uid
    return annotations


def _spec(
    group: ScenarioGroup, new: PodSlot, role: RoleTemplate, parts: PodParts, settings: PodSettings
) -> JsonObject:
    proxies = [_proxy(group, new, parts, settings.own_image)] if parts.proxy else []
    mounts = tuple(_mounts()[:1])
    weights = model_parts(group.spec.model.source, group.metadata.namespace, settings, mounts)
    drain = group.spec.recovery.drain_seconds
    spec: JsonObject = {
        "tolerations": [dict(t) for t in BASE_TOLERATIONS],
        "affinity": {"nodeAffinity": pin_to(new.node)},
        "readinessGates": [{"conditionType": names.CONDITION_LINKED}],
        "restartPolicy": "Always",
        "terminationGracePeriodSeconds": drain + GRACE_AFTER_DRAIN,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "fsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            _engine(group, new, role, parts, weights),
            *proxies,
            *map(hardened, parts.containers),
        ],
        "volumes": [
            {"name": _TMP_VOLUME, "emptyDir": {}},
            _control_volume(),
            *([LEADER_VOLUME] if parts.awaits_leader else ()),
            *map(dict, weights.volumes),
            *map(dict, parts.volumes),
        ],
    }
    awaiting = [await_leader(settings.own_image)] if parts.awaits_leader else []
    if weights.downloads or awaiting:
        spec["initContainers"] = [*map(dict, weights.downloads), *awaiting]
    if group.spec.engine.image_pull_secrets:
        spec["imagePullSecrets"] = [
            {"name": ref.name} for ref in group.spec.engine.image_pull_secrets
        ]
    return spec


def _control_volume() -> JsonObject:
    """The pod's annotation as a file, so that what the operator writes there reaches the engine."""
    path = f"metadata.annotations['{names.ANNOTATION_CONTROL}']"
    items = [{"path": "control", "fieldRef": {"fieldPath": path}}]
    return {"name": _CONTROL_VOLUME, "downwardAPI": {"items": items}}


def _engine(
    group: ScenarioGroup, new: PodSlot, role: RoleTemplate, parts: PodParts, weights: ModelParts
) -> JsonObject:
    devices = {role.instance.resource: str(role.instance.devices_per_node)}
    container: JsonObject = {
        "name": ENGINE_CONTAINER,
        "image": group.spec.engine.image,
        "args": [*parts.args, *role.args],
        "env": [
            *_env(group, new, parts),
            *([LEADER_ADDRESS] if parts.awaits_leader else ()),
            *({"name": name, "value": value} for name, value in parts.env.items()),
            *({"name": e.name, "value": e.value} for e in role.env),
        ],
        "ports": [
            {"name": "http", "containerPort": names.PORT_HTTP},
            {"name": "transfer", "containerPort": names.PORT_TRANSFER},
        ],
        "resources": {"limits": devices, "requests": {**DEFAULT_REQUESTS, **devices}},
        **_probes(parts, role),
        # An engine that writes elsewhere gets `readOnlyRootFilesystem: false` by its template.
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [*_mounts(), *map(dict, weights.mounts), *map(dict, parts.mounts)],
    }
    if parts.command:
        container["command"] = list(parts.command)
    if group.spec.engine.image_pull_policy:
        container["imagePullPolicy"] = str(group.spec.engine.image_pull_policy)
    return container


def _proxy(group: ScenarioGroup, new: PodSlot, parts: PodParts, image: str) -> JsonObject:
    """The engine proxy; whether the pod is ready is asked of the engine's container alone."""
    return {
        "name": PROXY_CONTAINER,
        "image": image,
        "command": list(PROXY_COMMAND),
        "args": ["--bind=::", f"--state-file={_PROXY_STATE}", *parts.proxy],
        "env": _env(group, new, parts),
        "resources": {kind: dict(amounts) for kind, amounts in PROXY_RESOURCES.items()},
        "livenessProbe": _probe(PROXY_LIVE, period=10, failures=3),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": _mounts(),
    }


def _mounts() -> list[JsonObject]:
    return [
        {"name": _TMP_VOLUME, "mountPath": "/tmp"},  # noqa: S108 - the pod's own
        {"name": _CONTROL_VOLUME, "mountPath": _CONTROL_DIR, "readOnly": True},
    ]


def _env(group: ScenarioGroup, new: PodSlot, parts: PodParts) -> list[JsonObject]:
    """What the operator sets in the containers that speak pdserve's contract."""
    # The leader's pod has the instance's name.
    instance = f"metadata.labels['{names.LABEL_INSTANCE}']" if new.member else "metadata.name"
    return [
        {"name": "PDSERVE_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        {"name": "PDSERVE_INSTANCE", "valueFrom": {"fieldRef": {"fieldPath": instance}}},
        role_variable(new.role, flips=may_flip(group, parts)),
        {"name": "PDSERVE_SERVICE", "value": group.spec.service},
        {"name": "PDSERVE_SCENARIO", "value": group.spec.scenario},
        {"name": "PDSERVE_DRAIN_SECONDS", "value": str(group.spec.recovery.drain_seconds)},
        {"name": "PDSERVE_CONTROL_TOKEN_FILE", "value": f"{_CONTROL_DIR}/control"},
        *member_env(new.member, new.members),
        # Engines and operators of older versions know no other; not there once it was rotated out.
        {
            "name": "PDSERVE_TOKEN",
            "valueFrom": {
                "secretKeyRef": {
                    "name": names.token_secret_name(group.spec.service),
                    "key": "token",
                    "optional": True,
                }
            },
        },
    ]


def _probes(parts: PodParts, role: RoleTemplate) -> JsonObject:
    if not parts.health_path:
        return {}
    return {
        "startupProbe": _probe(
            parts.health_path,
            period=_STARTUP_PERIOD,
            failures=math.ceil(role.startup_deadline_seconds / _STARTUP_PERIOD),
        ),
        "livenessProbe": _probe(parts.health_path, period=10, failures=3),
        "readinessProbe": _probe(parts.ready_path, period=2, failures=2),
    }


def _probe(path: str, period: int, failures: int) -> JsonObject:
    return {
        "httpGet": {"path": path, "port": names.PORT_HTTP},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": failures,
    }
