"""A role's `template`: the user's patch over the rendered pod, and what it may not touch.

Strategic merge as in `kubectl patch`: maps merge deeply, null deletes, `$patch: replace` in a
securityContext replaces it (`kubectl apply` drops nulls on its way), lists that have a merge
key merge by it, `tolerations` are appended, every other list is replaced. The adapter renders
first, the user's patch goes over it, so a site can add volumes, `/dev/shm`, priority classes or
runtime classes; but placement, identity, readiness and the role's own contract are not the
user's to change here, and a template that tries is refused with the field that would be right.
The merged pod keeps to the restricted Pod Security profile (`pod_profile`), unless an
administrator allowed more. Pure; `pods` renders, `controllers` reports a refusal as condition
`TemplateValid`.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

from pdserve.engines.own_parts import check_model_volume, check_own_parts, check_protected
from pdserve.engines.pod_profile import Rights, findings
from pdserve.engines.template_errors import NotAllowedError, TemplateError
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names
from pdserve.wire.pin import REQUIRED, TERMS, keep_pin

ENGINE_CONTAINER = "engine"

_MERGE_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "volumes": ("name",),
    "env": ("name",),
    "imagePullSecrets": ("name",),
    "ports": ("containerPort",),
    "volumeMounts": ("mountPath",),
    "volumeDevices": ("devicePath",),
    "hostAliases": ("ip",),
    "topologySpreadConstraints": ("topologyKey", "whenUnsatisfiable"),
    "resourceClaims": ("name",),
}
_APPEND = frozenset({"tolerations"})

_DIRECTIVE = "$patch"
_HARDENED: JsonMap = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
}
"""What containers that a template adds get where it says nothing: the engine has the same."""

_METADATA_ALLOWED = frozenset({"labels", "annotations"})
_OWN_LABELS = frozenset(("app.kubernetes.io/name", names.LABEL_COMPONENT, names.LABEL_MANAGED_BY))
"""By these Services, budgets and scrapes find pods: an instance must not pass for a gateway."""
_SPEC_PROTECTED: Mapping[str, str] = {
    "nodeName": "instances are pinned by the placement; choose nodes with the RoCEDomain",
    "schedulingGates": "instances are created already placed",
    "readinessGates": "the operator owns the readiness gate",
    "restartPolicy": "an engine always restarts in place",
    "terminationGracePeriodSeconds": "set spec.recovery.drainSeconds",
    "ephemeralContainers": "use kubectl debug on a running pod",
}
_CONTAINER_PROTECTED: Mapping[str, str] = {
    "image": "set spec.engine.image",
    "imagePullPolicy": "set spec.engine.imagePullPolicy",
    "args": "set args of the role",
    "readinessProbe": "readiness is the engine's own answer about its links",
    "lifecycle": "the operator owns the drain",
    "$patch": "every instance has its engine container",
}


def apply_template(
    pod: JsonMap, template: JsonMap, resource: str, rights: Rights | None
) -> JsonObject:
    """The rendered pod with the user's patch merged over it.

    Args:
        pod: manifest as the adapter rendered it; not changed.
        template: `{metadata?: {labels?, annotations?}, spec?: {...}}`.
        resource: the accelerator resource that the operator counts.
        rights: what the result may ask for beyond the restricted profile; None: anything.

    Raises:
        NotAllowedError: the result asks for more than `rights` gives.
        TemplateError: the template touches a protected field, or has the wrong shape.
    """
    check_template(template, resource)
    check_own_parts(pod["spec"], template.get("spec") or {})
    merged = {
        **pod,
        "metadata": _merge(pod["metadata"], template.get("metadata") or {}),
        "spec": _harden(_merge(pod["spec"], template.get("spec") or {})),
    }
    _limits_lead(merged["spec"], template.get("spec") or {})
    _keep_pin(merged["spec"], pod["spec"])
    check_model_volume(pod["spec"], merged["spec"])
    if _devices(merged["spec"], resource) != _devices(pod["spec"], resource):
        path = f"template.spec.containers[{ENGINE_CONTAINER}].resources"
        raise TemplateError(path, "set instance.devicesPerNode")
    if rights is None:
        return merged
    refused = rights.refused(merged, pod["metadata"]["namespace"], findings(pod))
    if refused is not None:
        raise NotAllowedError(refused)
    return merged


def _devices(spec: JsonMap, resource: str) -> list[object]:
    engine = next(c for c in spec["containers"] if c.get("name") == ENGINE_CONTAINER)
    resources = engine.get("resources") or {}
    return [(resources.get(kind) or {}).get(resource) for kind in ("limits", "requests")]


def _limits_lead(spec: JsonObject, patch: JsonMap) -> None:
    """Drop our request where the template limits that resource: Kubernetes makes both equal."""
    for given in patch.get("containers") or ():
        resources = given.get("resources")
        if given["name"] != ENGINE_CONTAINER or not isinstance(resources, Mapping):
            continue
        limits, requests = resources.get("limits"), resources.get("requests")
        stated = set(requests) if isinstance(requests, Mapping) else set()
        limited = set(limits) - stated if isinstance(limits, Mapping) else set()
        engine = next(c for c in spec["containers"] if c.get("name") == ENGINE_CONTAINER)
        kept = engine["resources"].get("requests") or {}
        engine["resources"]["requests"] = {k: v for k, v in kept.items() if k not in limited}


def _harden(spec: JsonObject) -> JsonObject:
    """The spec with what containers of the template leave open filled in."""
    made = dict(spec)
    for kind in ("containers", "initContainers"):
        if isinstance(spec.get(kind), list):
            made[kind] = [hardened(container) for container in spec[kind]]
    return made


def hardened(container: Any) -> Any:
    """The container with what it leaves open of its security context filled in."""
    context = container.get("securityContext") if isinstance(container, Mapping) else 0
    if context is not None and not isinstance(context, Mapping):
        return container  # the API server refuses it
    return {**container, "securityContext": _merge(_HARDENED, context or {})}


_GATEWAY_SPEC = frozenset((
    "tolerations", "nodeSelector", "affinity", "topologySpreadConstraints", "priorityClassName",
    "runtimeClassName", "schedulerName", "securityContext", "dnsPolicy", "dnsConfig", "hostAliases",
))  # fmt: skip


def apply_gateway_template(
    pod: JsonMap, template: JsonMap, namespace: str, rights: Rights
) -> JsonObject:
    """The gateways' pod template with the user's patch merged over it.

    Args:
        pod: `{metadata, spec}` as the operator rendered it; not changed.
        template: `{metadata?: {labels?, annotations?}, spec?: {...}}`; of the spec only what says
            where and as whom a gateway runs, since its container is not the author's.
        namespace: of the gateways.
        rights: what the result may ask for beyond the restricted profile.

    Raises:
        NotAllowedError: the result asks for more than `rights` gives.
        TemplateError: the template sets another field, or has the wrong shape.
    """
    _check_shape(template)
    for key in sorted(set(template.get("spec") or {}) - _GATEWAY_SPEC):
        known = ", ".join(sorted(_GATEWAY_SPEC))
        raise TemplateError(f"template.spec.{key}", f"a gateway's template has {known}")
    _check_directives("template", template)
    merged = {
        "metadata": _merge(pod["metadata"], template.get("metadata") or {}),
        "spec": _merge(pod["spec"], template.get("spec") or {}),
    }
    refused = rights.refused(merged, namespace, findings(pod))
    if refused is not None:
        raise NotAllowedError(refused)
    return merged


def check_template(template: JsonMap, resource: str) -> None:
    """Check that a template sets no protected field.

    Raises:
        TemplateError: names the first field that it must not set, in the order of the rules.
    """
    _check_shape(template)
    spec = template.get("spec") or {}
    for key, why in _SPEC_PROTECTED.items():
        if key in spec:
            raise TemplateError(f"template.spec.{key}", why)
    _check_nodes(spec)
    _check_containers(spec, resource)
    _check_directives("template", template)


def _check_shape(template: JsonMap) -> None:
    for key in sorted(set(template) - {"metadata", "spec"}):
        raise TemplateError(f"template.{key}", "a template holds metadata and spec")
    for key, value in template.items():
        if value is not None and not isinstance(value, Mapping):
            raise TemplateError(f"template.{key}", "it must be an object")
    _check_metadata(template.get("metadata") or {})


def _check_metadata(metadata: JsonMap) -> None:
    for key in sorted(set(metadata) - _METADATA_ALLOWED):
        raise TemplateError(f"template.metadata.{key}", "only labels and annotations can be added")
    for kind in sorted(_METADATA_ALLOWED):
        entries = metadata.get(kind) or {}
        if not isinstance(entries, Mapping):
            raise TemplateError(f"template.metadata.{kind}", "it must be an object")
        for key in sorted(entries):
            if kind == "labels" and key in _OWN_LABELS:
                raise TemplateError(f"template.metadata.labels[{key}]", "it is the operator's")
            prefix = key.split("/")[0]
            if prefix == names.GROUP or prefix.endswith("." + names.GROUP):
                raise TemplateError(
                    f"template.metadata.{kind}[{key}]", f"the prefix {prefix} is the operator's"
                )


def _check_nodes(spec: JsonMap) -> None:
    """Labels that nodes must have are demanded beside the pin; nothing else is said of nodes."""
    selector = spec.get("nodeSelector", {})
    if not isinstance(selector, Mapping) or not all(isinstance(v, str) for v in selector.values()):
        raise TemplateError("template.spec.nodeSelector", "it must be labels and their values")
    if "affinity" not in spec:
        return
    affinity = spec["affinity"]
    why = "instances are pinned by the placement; demand labels of nodes with"
    if not isinstance(affinity, Mapping):
        raise TemplateError("template.spec.affinity", f"{why} nodeSelector")
    if "nodeAffinity" not in affinity:
        return
    path = "template.spec.affinity.nodeAffinity"
    demanded = affinity["nodeAffinity"]
    if not isinstance(demanded, Mapping) or set(demanded) != {REQUIRED}:
        raise TemplateError(path, f"{why} nodeSelector, or with {REQUIRED} alone")
    path = f"{path}.{REQUIRED}"
    terms = demanded[REQUIRED].get(TERMS) if isinstance(demanded[REQUIRED], Mapping) else None
    if not isinstance(terms, list) or not terms:
        raise TemplateError(path, f"it must be {TERMS}, a list with at least one term")
    for index, term in enumerate(terms):
        listed = term.get("matchExpressions") if isinstance(term, Mapping) else None
        if not isinstance(listed, list) or not listed or set(term) != {"matchExpressions"}:
            raise TemplateError(
                f"{path}.{TERMS}[{index}]", f"{why} matchExpressions alone, at least one"
            )


def _keep_pin(spec: JsonObject, rendered: JsonMap) -> None:
    """Every term of a template's node affinity holds on the pinned node alone."""
    own, given = (s["affinity"]["nodeAffinity"] for s in (rendered, spec))
    if given[REQUIRED] != own[REQUIRED]:
        given[REQUIRED][TERMS] = keep_pin(given[REQUIRED][TERMS], own)


def _check_containers(spec: JsonMap, resource: str) -> None:
    # Also null, which would delete the engine.
    for kind in ("containers", "initContainers"):
        given = spec.get(kind, [])
        if not isinstance(given, list) and (given is not None or kind == "containers"):
            raise TemplateError(f"template.spec.{kind}", "it must be a list, merged by name")
    listed = [
        (f"template.spec.{kind}[{index}]", container)
        for kind in ("containers", "initContainers")
        for index, container in enumerate(spec.get(kind) or [])
    ]
    for path, container in listed:
        if not isinstance(container, Mapping) or not container.get("name"):
            raise TemplateError(path, "every container needs a name, e.g. name: engine")
        for where, amount in _resource_claims(container):
            if amount == resource:
                raise TemplateError(
                    f"{path}.resources.{where}[{resource}]", "set instance.devicesPerNode"
                )
        if container["name"] == ENGINE_CONTAINER:
            if path.startswith("template.spec.initContainers"):
                raise TemplateError(path, "the name engine is the engine's")
            check_protected(path, container, _CONTAINER_PROTECTED)


def _resource_claims(container: JsonMap) -> Iterator[tuple[str, str]]:
    resources = container.get("resources")
    for where in ("limits", "requests"):
        amounts = resources.get(where) if isinstance(resources, Mapping) else None
        for name in amounts if isinstance(amounts, Mapping) else ():
            yield where, name


def _check_directives(path: str, value: object) -> None:
    """Directives where they are known; elsewhere they would take away what others rely on."""
    if isinstance(value, list):
        for index, entry in enumerate(value):
            if isinstance(entry, Mapping) and entry.get(_DIRECTIVE) == "delete":
                continue
            _check_directives(f"{path}[{index}]", entry)
    elif isinstance(value, Mapping):
        replaces = path.endswith(".securityContext") and value.get(_DIRECTIVE) == "replace"
        if _DIRECTIVE in value and not replaces:
            right = "delete in an entry of a list, or replace in a securityContext"
            raise TemplateError(f"{path}.{_DIRECTIVE}", f"it is {right}")
        for key, below in value.items():
            _check_directives(f"{path}.{key}", below)


def _merge(base: Any, patch: JsonMap) -> JsonObject:
    kept = isinstance(base, Mapping) and patch.get(_DIRECTIVE) != "replace"
    merged: JsonObject = dict(base) if kept else {}
    for key, value in patch.items():
        if key == _DIRECTIVE:
            continue
        if value is None:
            merged.pop(key, None)
        elif isinstance(value, Mapping):
            merged[key] = _merge(merged.get(key), value)
        elif isinstance(value, list) and key in _APPEND:
            merged[key] = [*merged.get(key, []), *copy.deepcopy(value)]
        elif isinstance(value, list) and key in _MERGE_KEYS:
            merged[key] = _merge_list(merged.get(key, []), value, _MERGE_KEYS[key])
        else:
            merged[key] = copy.deepcopy(value)
    return merged


def _merge_list(base: list[object], patch: list[object], keys: tuple[str, ...]) -> list[object]:
    merged = list(base)
    for entry in patch:
        if not isinstance(entry, Mapping):
            merged.append(copy.deepcopy(entry))
            continue
        at = next(
            (
                i
                for i, old in enumerate(merged)
                if isinstance(old, Mapping) and all(old.get(k) == entry.get(k) for k in keys)
            ),
            None,
        )
        if entry.get(_DIRECTIVE) == "delete":
            if at is not None:
                del merged[at]
        elif at is None:
            merged.append(_merge({}, entry))
        else:
            merged[at] = _merge(merged[at], entry)
    return merged
