"""Every right the operator uses: (apiGroup, resource, verbs). The chart grants exactly these.

Three tests check the list: the chart's rules equal it; the operator's requests in a simulation are
in it; and in the audit log of a real API server, over the operator's whole life, every right is
used and no request is refused. Rights that can be limited to one namespace are listed apart.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

Rules = Mapping[tuple[str, str], frozenset[str]]


def _verbs(text: str) -> frozenset[str]:
    return frozenset(text.split())


NAMESPACED: Final[Rules] = {
    ("pdserve.io", "pdservices"): _verbs("list watch"),
    ("pdserve.io", "pdservices/status"): _verbs("patch"),
    ("pdserve.io", "scenariogroups"): _verbs("get list watch create patch delete"),
    ("pdserve.io", "scenariogroups/status"): _verbs("patch"),
    ("", "pods"): _verbs("get create patch delete"),
    ("", "pods/status"): _verbs("patch"),
    ("", "configmaps"): _verbs("get list watch create patch delete"),
    ("", "secrets"): _verbs("get create patch delete"),
    ("", "serviceaccounts"): _verbs("get list watch create patch"),
    ("", "services"): _verbs("get list watch create patch"),
    ("apps", "controllerrevisions"): _verbs("list watch create delete"),
    ("apps", "deployments"): _verbs("get list watch create patch"),
    ("rbac.authorization.k8s.io", "roles"): _verbs("get list watch create patch"),
    ("rbac.authorization.k8s.io", "rolebindings"): _verbs("get list watch create patch"),
    ("policy", "poddisruptionbudgets"): _verbs("get list watch create patch delete"),
    ("networking.k8s.io", "networkpolicies"): _verbs("get list watch create patch delete"),
    ("", "persistentvolumeclaims"): _verbs("get"),
    ("", "events"): _verbs("create patch"),
}
"""Needed where PDServices and ScenarioGroups live: a Role with --namespace, else a ClusterRole."""

CLUSTER: Final[Rules] = {
    ("pdserve.io", "rocedomains"): _verbs("list watch"),
    ("pdserve.io", "rocedomains/status"): _verbs("patch"),
    ("", "nodes"): _verbs("get list watch"),
    ("", "pods"): _verbs("list watch"),
    ("", "configmaps"): _verbs("get"),
    ("", "persistentvolumes"): _verbs("get list"),
    ("storage.k8s.io", "storageclasses"): _verbs("get"),
}
"""Always a ClusterRole: free devices are counted over all pods of the cluster, and the one
ConfigMap (by name) says whose all namespaces are."""

LEASE: Final[Rules] = {
    ("coordination.k8s.io", "leases"): _verbs("get create update"),
}
"""A Role in the operator's own namespace (leader election); all but `create` by name."""

_VOLUMES: Final = "where a template mounts a persistentVolumeClaim"
RARE: Final[Mapping[tuple[str, str, str], str]] = {
    ("pdserve.io", "scenariogroups", "get"): (
        "after a POST that met an object which the cache does not show yet: a predecessor made it "
        "and was killed within the delay of a watch"
    ),
    ("", "configmaps", "get"): (
        "after a write that met a table which has changed since, or which the cache does not show"
    ),
    ("", "nodes", "get"): "while a Node is without Ready: time counts as its silence only where "
    "the API server answers",
    ("", "persistentvolumeclaims", "get"): _VOLUMES,
    ("", "persistentvolumes", "get"): _VOLUMES,
    ("", "persistentvolumes", "list"): _VOLUMES,
    ("storage.k8s.io", "storageclasses", "get"): _VOLUMES,
    ("", "secrets", "delete"): (
        "the shared token of a service made by an older operator, after the first rotation that "
        "no older instance outlived"
    ),
}
"""(apiGroup, resource, verb) -> when it is used. What a test cannot bring about at will."""
