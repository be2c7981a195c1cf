"""The objects around one PDService's gateway, as manifests. Pure.

Gateway pods may read exactly one object: the route table of their service. They list and watch it
with a field selector, because `resourceNames` allows it only so. Neighbours: `pdservice` decides
when these are written, `routing` what the route table says.

How a gateway leaves without losing a request:

    pod deleted         preStop: serves on, while the Service lets go of it    STOP_ACCEPTING_AFTER
    SIGTERM             accepts nothing new, finishes its streams              _drain_seconds
    end of its grace    SIGKILL                                                GRACE_AFTER_DRAIN
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

from pdserve.api import PDService
from pdserve.engines.pod_profile import Rights
from pdserve.engines.pods_template import apply_gateway_template
from pdserve.frozen import Memo
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

COMPONENT = "gateway"
NO_RIGHTS = Rights()
TLS_DIR = "/etc/pdserve/tls"
DEFAULT_REQUESTS: Mapping[str, str] = {"cpu": "100m", "memory": "128Mi"}
AUTH_DIR = "/etc/pdserve/auth"
CREDENTIALS_DIR = "/etc/pdserve/credentials"
STOP_ACCEPTING_AFTER = 5
"""Seconds from a gateway's deletion to SIGTERM. The Service stops sending to it meanwhile: its end
reaches every node's kube-proxy only after a moment, and until then new connections come in."""
SHORTEST_DRAIN = 30
"""Seconds; also where instances are not given that long."""
GRACE_AFTER_DRAIN = 10
"""Seconds to close and exit."""


def gateway_name(service: str) -> str:
    """Name shared by all objects of a service's gateway."""
    return f"{service}-gateway"


def url(service: PDService) -> str:
    """Where clients inside the cluster reach the service."""
    host = f"{gateway_name(service.metadata.name)}.{service.metadata.namespace}.svc"
    scheme, usual = ("https", 443) if service.spec.gateway.tls else ("http", 80)
    port = service.spec.gateway.port
    return f"{scheme}://{host}" if port == usual else f"{scheme}://{host}:{port}"


def gateway_objects(
    service: PDService,
    image: str,
    owner: JsonMap,
    credential: str,
    rights: Rights = NO_RIGHTS,
) -> tuple[JsonObject, ...]:
    """All objects of one service's gateway, in the order to create them.

    `credential` is the fingerprint of what gateways send to engines: another one rolls them.
    The same objects for the same spec, not to be changed.

    Raises:
        TemplateError: `gateway.template` asks for what it may not, by `rights`.
    """
    meta = service.metadata
    by = (meta.namespace, meta.name, image, credential, *sorted(owner.items()))
    return _objects.of(
        lambda: _gateway_objects(service, image, owner, credential, rights),
        service.spec, rights, by=by,
    )  # fmt: skip


_objects: Memo[tuple[JsonObject, ...]] = Memo()


def _gateway_objects(
    service: PDService, image: str, owner: JsonMap, credential: str, rights: Rights
) -> tuple[JsonObject, ...]:
    return (
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": _meta(service, owner)},
        _role(service, owner),
        _role_binding(service, owner),
        _deployment(service, image, owner, credential, rights),
        _disruption_budget(service, owner),
        _service(service, owner),
    )


def gateway_labels(service: PDService) -> dict[str, str]:
    """Labels that select the gateway pods of one service."""
    return {
        names.LABEL_COMPONENT: COMPONENT,
        names.LABEL_SERVICE: service.metadata.name,
    }


def owned_metadata(
    name: str, namespace: str, service: str, owner: JsonMap, component: str
) -> JsonObject:
    """Metadata of an object that the operator makes for a PDService or ScenarioGroup."""
    return {
        "name": name,
        "namespace": namespace,
        "labels": {
            "app.kubernetes.io/name": "pdserve",
            names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
            names.LABEL_COMPONENT: component,
            names.LABEL_SERVICE: service,
        },
        "ownerReferences": [dict(owner)],
    }


def _meta(service: PDService, owner: JsonMap) -> JsonObject:
    name = service.metadata.name
    return owned_metadata(gateway_name(name), service.metadata.namespace, name, owner, COMPONENT)


def _role(service: PDService, owner: JsonMap) -> JsonObject:
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": _meta(service, owner),
        "rules": [
            {
                "apiGroups": [""],
                "resources": ["configmaps"],
                "resourceNames": [names.routes_configmap_name(service.metadata.name)],
                "verbs": ["list", "watch"],
            }
        ],
    }


def _role_binding(service: PDService, owner: JsonMap) -> JsonObject:
    name = gateway_name(service.metadata.name)
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": _meta(service, owner),
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [
            {"kind": "ServiceAccount", "name": name, "namespace": service.metadata.namespace}
        ],
    }


def _deployment(
    service: PDService, image: str, owner: JsonMap, credential: str, rights: Rights
) -> JsonObject:
    labels = gateway_labels(service)
    made: JsonObject = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": _meta(service, owner),
        "spec": {
            "replicas": service.spec.gateway.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
            "template": gateway_pod(service, image, credential, rights),
        },
    }
    # `ensure` does not see that a field is no longer wanted; this changes with any field.
    text = json.dumps(made["spec"], sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    made["metadata"]["annotations"] = {names.ANNOTATION_SPEC_HASH: digest}
    return made


def gateway_pod(service: PDService, image: str, credential: str, rights: Rights) -> JsonObject:
    """The gateways' pod template, with the user's patch.

    Raises:
        TemplateError: `gateway.template` asks for what it may not.
    """
    pod = {
        "metadata": {
            "labels": {
                "app.kubernetes.io/name": "pdserve",
                names.LABEL_MANAGED_BY: names.FIELD_MANAGER,
                **gateway_labels(service),
            },
            "annotations": {
                names.ANNOTATION_METRICS_SCRAPE: "true",
                names.ANNOTATION_METRICS_PORT: str(names.PORT_METRICS),
                names.ANNOTATION_CREDENTIALS: credential,
            },
        },
        "spec": _pod_spec(service, image),
    }
    template = service.spec.gateway.template
    if template is None:
        return pod
    return apply_gateway_template(pod, template.to_dict(), service.metadata.namespace, rights)


def _drain_seconds(service: PDService) -> int:
    """How long a stopped gateway finishes streams: as long as an instance may go on with them."""
    return max(SHORTEST_DRAIN, service.spec.recovery.drain_seconds)


def _pod_spec(service: PDService, image: str) -> JsonObject:
    grace = STOP_ACCEPTING_AFTER + _drain_seconds(service) + GRACE_AFTER_DRAIN
    spec: JsonObject = {
        "serviceAccountName": gateway_name(service.metadata.name),
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace,
        "topologySpreadConstraints": [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": gateway_labels(service)},
                # Counted per revision: old pods that leave must not push new ones aside.
                "matchLabelKeys": ["pod-template-hash"],
            }
        ],
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 65532,
            "runAsGroup": 65532,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(service, image)],
    }
    if service.spec.engine.image_pull_secrets:
        spec["imagePullSecrets"] = [
            {"name": ref.name} for ref in service.spec.engine.image_pull_secrets
        ]
    request = names.request_secret_name(service.metadata.name)
    spec["volumes"] = [{"name": "credentials", "secret": {"secretName": request}}]
    if service.spec.gateway.auth is not None:
        secret = service.spec.gateway.auth.secret_ref.name
        spec["volumes"].append({"name": "auth", "secret": {"secretName": secret}})
    if service.spec.gateway.tls is not None:
        secret = service.spec.gateway.tls.secret_ref.name
        spec["volumes"].append({"name": "tls", "secret": {"secretName": secret}})
    return spec


def _container(service: PDService, image: str) -> JsonObject:
    name = service.metadata.name
    routes = f"configmap:{service.metadata.namespace}/{names.routes_configmap_name(name)}"
    args = [
        "--routes", routes,
        "--port", str(names.PORT_HTTP),
        "--drain-seconds", str(_drain_seconds(service)),
    ]  # fmt: skip
    container: JsonObject = {
        "name": "gateway",
        "image": image,
        "args": args,
        "env": [
            {"name": "PDSERVE_REQUEST_TOKEN_FILE", "value": f"{CREDENTIALS_DIR}/request"},
            {"name": "PDSERVE_METRICS_PORT", "value": str(names.PORT_METRICS)},
            {"name": "PDSERVE_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            *({"name": name, "value": value} for name, value in _settings(service).items()),
        ],
        "volumeMounts": [{"name": "credentials", "mountPath": CREDENTIALS_DIR, "readOnly": True}],
        "ports": [
            {"name": "http", "containerPort": names.PORT_HTTP},
            {"name": "metrics", "containerPort": names.PORT_METRICS},
        ],
        "readinessProbe": _probe(service, "/readyz", period=2),
        "livenessProbe": _probe(service, "/healthz", period=10),
        "lifecycle": {"preStop": {"sleep": {"seconds": STOP_ACCEPTING_AFTER}}},
        "resources": _resources(service),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }
    if service.spec.gateway.auth is not None:
        container["args"] = [*args, "--auth-dir", AUTH_DIR]
        container["volumeMounts"].append({"name": "auth", "mountPath": AUTH_DIR, "readOnly": True})
    if service.spec.gateway.tls is not None:
        container["volumeMounts"].append({"name": "tls", "mountPath": TLS_DIR, "readOnly": True})
    return container


def _settings(service: PDService) -> dict[str, str]:
    """What `pdserve.gateway.process` reads of its environment."""
    gateway, found = service.spec.gateway, {}
    if gateway.tls is not None:
        found["PDSERVE_TLS_CERT"] = f"{TLS_DIR}/tls.crt"
        found["PDSERVE_TLS_KEY"] = f"{TLS_DIR}/tls.key"
    if gateway.max_body_bytes is not None:
        found["PDSERVE_MAX_BODY_BYTES"] = str(gateway.max_body_bytes)
    if gateway.tracing is not None:
        namespace = service.metadata.namespace
        found["OTEL_EXPORTER_OTLP_ENDPOINT"] = gateway.tracing.endpoint
        found["OTEL_SERVICE_NAME"] = gateway_name(service.metadata.name)
        found["OTEL_RESOURCE_ATTRIBUTES"] = f"k8s.namespace.name={namespace}"
        if gateway.tracing.sampling_percent is not None:
            found["OTEL_TRACES_SAMPLER"] = "parentbased_traceidratio"
            found["OTEL_TRACES_SAMPLER_ARG"] = f"{gateway.tracing.sampling_percent / 100:g}"
    if gateway.cors is not None:
        found["PDSERVE_CORS_ORIGINS"] = ",".join(gateway.cors.origins)
    return found


def _resources(service: PDService) -> JsonObject:
    given = service.spec.gateway.resources
    if given is None:
        return {"requests": dict(DEFAULT_REQUESTS)}
    ours = {k: v for k, v in DEFAULT_REQUESTS.items() if k not in given.limits}
    made: JsonObject = {"requests": {**ours, **given.requests}}
    if given.limits:
        made["limits"] = dict(given.limits)
    return made


def _disruption_budget(service: PDService, owner: JsonMap) -> JsonObject:
    """Drains of nodes take one gateway at a time; one that stands alone never holds a drain up."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": _meta(service, owner),
        "spec": {
            "maxUnavailable": 1,
            "unhealthyPodEvictionPolicy": "AlwaysAllow",
            "selector": {"matchLabels": gateway_labels(service)},
        },
    }


def _service(service: PDService, owner: JsonMap) -> JsonObject:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": _meta(service, owner),
        "spec": {
            "type": "ClusterIP",
            "selector": gateway_labels(service),
            # Each gateway serves every request; balancing by client would only make it uneven.
            "sessionAffinity": "None",
            "ports": [
                {
                    "name": "http",
                    "appProtocol": "https" if service.spec.gateway.tls else "http",
                    "protocol": "TCP",
                    "port": service.spec.gateway.port,
                    "targetPort": "http",
                }
            ],
        },
    }


def _probe(service: PDService, path: str, period: int) -> JsonObject:
    scheme = {"scheme": "HTTPS"} if service.spec.gateway.tls else {}
    return {
        "httpGet": {"path": path, "port": names.PORT_HTTP, **scheme},
        "periodSeconds": period,
        "timeoutSeconds": 2,
        "failureThreshold": 3,
    }
