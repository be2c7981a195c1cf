"""Whether a scheduler would bind a pod to a node: amounts, host ports, labels, taints.

Each question is answered anew from the pods of one node, without caches or shortcuts, so that the
result is independent of placement's. Neighbour: `world` asks it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from pdserve.terms.json import JsonMap
from pdserve.terms.quantity import QuantityError
from pdserve.topology.affinity import matches, terms_of
from pdserve.topology.nodes import Taint, Toleration
from pdserve.topology.requests import is_port, offered, pod_requests, port_conflicts


def refusal_of(pod: JsonMap, node: JsonMap, bound: Iterable[JsonMap]) -> str | None:
    """Why the node does not take the pod, in the scheduler's words; None when it does.

    `bound`: the pods that are there.
    """
    spec, labels = pod["spec"], node["metadata"].get("labels") or {}
    chosen: Mapping[str, str] = spec.get("nodeSelector") or {}
    if not all(labels.get(k) == v for k, v in chosen.items()) or not _affine(spec, node):
        return "node(s) didn't match Pod's node affinity/selector"
    if node.get("spec", {}).get("unschedulable"):
        return "node(s) were unschedulable"
    accepted = [Toleration.from_json(t) for t in spec.get("tolerations") or ()]
    for raw in node.get("spec", {}).get("taints") or ():
        taint = Taint(raw["key"], raw.get("value", ""), raw["effect"])
        hard = taint.effect in ("NoSchedule", "NoExecute")
        if hard and not any(t.tolerates(taint) for t in accepted):
            return f"node(s) had untolerated taint {{{taint.key}: {taint.value}}}"
    held: Counter[str] = Counter()
    for other in bound:
        held.update(pod_requests(other))
    stated = node.get("status", {}).get("allocatable") or {}
    for resource, amount in pod_requests(pod).items():
        if is_port(resource):
            if any(held[key] for key in port_conflicts(resource)):
                return "node(s) didn't have free ports for the requested pod ports"
        elif held[resource] + amount > _offered(resource, stated):
            return "Too many pods" if resource == "pods" else f"Insufficient {resource}"
    return None


def is_admitted(pod: JsonMap, node: JsonMap, bound: Iterable[JsonMap]) -> bool:
    """Whether the node's kubelet runs a pod that is bound to it past the scheduler.

    It reckons with what it knows: an extended resource that the node does not state is not looked
    at. `bound`: the pods that are there.
    """
    held: Counter[str] = Counter()
    for other in bound:
        held.update(pod_requests(other))
    stated = node.get("status", {}).get("allocatable") or {}
    return all(
        held[resource] + amount <= _offered(resource, stated)
        for resource, amount in pod_requests(pod).items()
        if not is_port(resource) and (resource in stated or "/" not in resource)
    )


def _affine(spec: JsonMap, node: JsonMap) -> bool:
    affinity = (spec.get("affinity") or {}).get("nodeAffinity") or {}
    required = affinity.get("requiredDuringSchedulingIgnoredDuringExecution")
    meta = node["metadata"]
    return required is None or matches(terms_of(required), meta["name"], meta.get("labels") or {})


def _offered(resource: str, stated: JsonMap) -> int:
    try:
        return offered(resource, stated.get(resource, 0))
    except QuantityError:
        return 0
