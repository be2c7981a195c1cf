"""Which kind of object is meant: group, version, plural, scope. Neighbours: every module here.

Objects themselves stay raw JSON (`Object`); typed models of our own kinds live in `pdserve.api`.
"""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import quote

Object = dict[str, Any]
"""One Kubernetes object as JSON. What a cache hands out must not be changed by its readers."""


class ObjectKey(NamedTuple):
    """Identity of an object within its kind; `namespace` is "" for cluster-scoped ones."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class Resource(NamedTuple):
    """A kind as the REST API names it, e.g. `Resource("apps", "v1", "deployments", "Deployment")`.

    `group` is "" for the core API.
    """

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True

    @property
    def api_version(self) -> str:
        """`apiVersion` of objects of this kind."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(
        self, namespace: str | None = None, name: str | None = None, subresource: str | None = None
    ) -> str:
        """URL path. Without `namespace`: the whole cluster's collection (list and watch only).

        Raises:
            ValueError: a name without the namespace it needs, or a namespace that has no place.
        """
        if namespace and not self.namespaced:
            raise ValueError(
                f"{self.plural} are cluster-scoped: namespace {namespace!r} not wanted"
            )
        if name and self.namespaced and not namespace:
            raise ValueError(f"{self.plural} {name!r}: a namespace is required")
        parts = ["apis", self.group] if self.group else ["api"]
        parts.append(self.version)
        if namespace:
            parts += ["namespaces", namespace]
        parts.append(self.plural)
        if name:
            parts.append(name)
        if subresource:
            parts.append(subresource)
        return "/" + "/".join(quote(part, safe="") for part in parts)


def key_of(obj: Object) -> ObjectKey:
    """The object's identity within its kind."""
    meta = obj["metadata"]
    return ObjectKey(meta.get("namespace") or "", meta["name"])


def version_of(obj: Object) -> int:
    """`resourceVersion` as a number; 0 when absent.

    Versions of one resource type may be compared as decimal numbers: guaranteed by Kubernetes
    since 1.35 (KEP-5504) and true of every etcd-backed API server before.
    """
    return int(obj["metadata"].get("resourceVersion") or 0)


PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
CONFIGMAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICES = Resource("", "v1", "services", "Service")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
NAMESPACES = Resource("", "v1", "namespaces", "Namespace", namespaced=False)
EVENTS = Resource("", "v1", "events", "Event")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
CONTROLLER_REVISIONS = Resource("apps", "v1", "controllerrevisions", "ControllerRevision")
POD_DISRUPTION_BUDGETS = Resource("policy", "v1", "poddisruptionbudgets", "PodDisruptionBudget")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
ROLES = Resource("rbac.authorization.k8s.io", "v1", "roles", "Role")
ROLE_BINDINGS = Resource("rbac.authorization.k8s.io", "v1", "rolebindings", "RoleBinding")
PERSISTENT_VOLUME_CLAIMS = Resource("", "v1", "persistentvolumeclaims", "PersistentVolumeClaim")
PERSISTENT_VOLUMES = Resource("", "v1", "persistentvolumes", "PersistentVolume", namespaced=False)
STORAGE_CLASSES = Resource(
    "storage.k8s.io", "v1", "storageclasses", "StorageClass", namespaced=False
)
CRDS = Resource(
    "apiextensions.k8s.io", "v1", "customresourcedefinitions", "CustomResourceDefinition",
    namespaced=False,
)  # fmt: skip
