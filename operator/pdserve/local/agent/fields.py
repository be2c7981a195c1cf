"""Downward API: values of a pod's own fields, for environment variables and volumes. Pure."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pdserve.kube.resource import Object

_SUFFIXES = {
    "": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12,
    "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40,
}  # fmt: skip
_SUBSCRIPT = re.compile(r"metadata\.(labels|annotations)\['([^']+)'\]")


class FieldError(ValueError):
    """A field reference that does not lead to a value."""


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


def resource_value(
    container: Mapping[str, Any], allocatable: Mapping[str, str], ref: Mapping[str, Any]
) -> str:
    """Value of a `resourceFieldRef`: an unset limit is what the node can allocate."""
    kind, _, name = str(ref["resource"]).partition(".")
    if kind not in ("limits", "requests"):
        raise FieldError(f"resourceFieldRef.resource: {ref['resource']!r}")
    given = (container.get("resources") or {}).get(kind) or {}
    quantity = given.get(name)
    if quantity is None:
        quantity = "0" if kind == "requests" else allocatable.get(name, "0")
    divisor = parse_quantity(str(ref.get("divisor") or "1")) or 1.0
    # The kubelet rounds up, so that half a core still counts as one.
    return str(math.ceil(parse_quantity(str(quantity)) / divisor - 1e-9))


def parse_quantity(text: str) -> float:
    """A Kubernetes quantity as a number; raises FieldError."""
    match = re.fullmatch(r"([0-9.]+(?:e[0-9]+)?)([a-zA-Z]*)", text)
    if match is None or match[2] not in _SUFFIXES:
        raise FieldError(f"{text!r} is not a quantity")
    return float(match[1]) * _SUFFIXES[match[2]]


def _quoted(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
