"""Downward API: values of a pod's own fields, for environment variables and volumes. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap
from pdserve.terms.quantity import QuantityError, quantity

_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class FieldError(ValueError):
    """A field reference that does not lead to a value."""


DEFAULT_GRACE = 30.0
"""Kubernetes' default of `terminationGracePeriodSeconds`."""


def field_value(pod: Object, pod_ip: str, node_ip: str, path: str) -> str:
    """Value of `fieldRef.fieldPath` as text.

    Raises:
        FieldError: not one of the paths that Kubernetes documents for the downward API.
    """
    meta, spec = pod["metadata"], pod["spec"]
    simple = {
        "metadata.name": meta["name"],
        "metadata.namespace": meta.get("namespace", ""),
        "metadata.uid": meta.get("uid", ""),
        "spec.nodeName": spec.get("nodeName", ""),
        "spec.serviceAccountName": spec.get("serviceAccountName", ""),
        "status.podIP": pod_ip,
        "status.podIPs": pod_ip,
        "status.hostIP": node_ip,
        "status.hostIPs": node_ip,
    }
    if path in simple:
        return str(simple[path])
    if match := _SUBSCRIPT.fullmatch(path):
        return str((meta.get(match[1]) or {}).get(match[2], ""))
    if path in ("metadata.labels", "metadata.annotations"):
        entries: Mapping[str, str] = meta.get(path.partition(".")[2]) or {}
        return "\n".join(f'{key}="{_quoted(entries[key])}"' for key in sorted(entries))
    raise FieldError(f"fieldPath: {path!r} is not available to a container")


def resource_value(container: JsonMap, allocatable: Mapping[str, str], ref: JsonMap) -> str:
    """Value of a `resourceFieldRef` in units of its divisor, rounded up as the kubelet does.

    A limit that is not set is what the node can allocate; a request that is not set is 0.

    Raises:
        FieldError: the reference names neither a limit nor a request, or a value is no quantity.
    """
    kind, _, name = str(ref["resource"]).partition(".")
    if kind not in ("limits", "requests"):
        raise FieldError(f"resourceFieldRef.resource: {ref['resource']!r}")
    given = (container.get("resources") or {}).get(kind) or {}
    stated = given.get(name)
    if stated is None:
        stated = "0" if kind == "requests" else allocatable.get(name, "0")
    try:
        amount, divisor = quantity(stated), quantity(ref.get("divisor") or "1")
    except QuantityError as error:
        raise FieldError(f"resourceFieldRef.resource {ref['resource']}: {error}") from error
    # The kubelet rounds up, so that half a core still counts as one.
    return str(math.ceil(amount / (divisor or 1)))


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def grace_seconds(pod: Object) -> float:
    """Seconds between SIGTERM and SIGKILL: as its deletion says, else its spec."""
    meta, spec = pod["metadata"], pod["spec"]
    for value in (
        meta.get("deletionGracePeriodSeconds"),
        spec.get("terminationGracePeriodSeconds"),
    ):
        if value is not None:
            return float(value)
    return DEFAULT_GRACE
