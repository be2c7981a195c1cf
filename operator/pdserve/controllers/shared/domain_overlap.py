"""Detects two RoCEDomains over the same nodes, and refuses the younger one.

Each domain is a tree of its own, so two that share nodes describe the same links differently. The
older one (creation time, then name) is valid; every other is not Ready, and its ScenarioGroups say
so. What runs in it goes on: devices are counted by node, whatever domain placed them.
"""

from __future__ import annotations

from collections.abc import Iterable

from pdserve.api import RoCEDomain, ScenarioGroup
from pdserve.controllers.shared.caches import Caches
from pdserve.controllers.shared.skipped import read_each
from pdserve.groups.types import ConditionState
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap
from pdserve.topology import NodeView

REASON = "NodesShared"
CONDITION = "FabricValid"
"""On a ScenarioGroup, from the first time its RoCEDomain shares nodes."""
_NAMED = 3


def overlap(caches: Caches, domain: Object) -> ConditionState | None:
    """Ready=False when an older RoCEDomain selects nodes that `domain` selects too."""
    older = sorted((d for d in caches.domains.list() if _age(d) < _age(domain)), key=_age)
    if not older:
        return None
    chosen = _selected(domain, caches.nodes.list())

    def both(other: Object) -> tuple[Object, list[str]]:
        return other, [node.name for node in _selected(other, chosen)]

    for other, shared in read_each(older, both, caches.skipped, "observe"):
        if shared:
            named = ", ".join(shared[:_NAMED]) + (" and more" if len(shared) > _NAMED else "")
            message = (
                f"{len(shared)} nodes ({named}) belong to the older RoCEDomain "
                f"{other['metadata']['name']!r} too: correct spec.nodeSelector of one of the two"
            )
            return ConditionState("Ready", "False", REASON, message)
    return None


def overlap_in_status(domain: JsonMap | None) -> str:
    """What the status of a RoCEDomain says of shared nodes; "" if nothing."""
    for condition in ((domain or {}).get("status") or {}).get("conditions") or ():
        if condition.get("type") == "Ready" and condition.get("reason") == REASON:
            return str(condition.get("message", ""))
    return ""


def fabric_condition(group: ScenarioGroup, domain: RoCEDomain) -> tuple[ConditionState, ...]:
    """What a ScenarioGroup says of its RoCEDomain's nodes; none while there was nothing to say."""
    for condition in domain.status.conditions:
        if condition.type == "Ready" and condition.reason == REASON:
            message = f"RoCEDomain {domain.metadata.name!r}: {condition.message}"
            return (ConditionState(CONDITION, "False", REASON, message),)
    if any(c.type == CONDITION for c in group.status.conditions):
        return (ConditionState(CONDITION, "True", "NodesOwn", ""),)
    return ()


def _age(domain: Object) -> tuple[str, str]:
    meta = domain["metadata"]
    return str(meta.get("creationTimestamp") or ""), str(meta["name"])


def _selected(domain: Object, nodes: Iterable[NodeView]) -> list[NodeView]:
    selector = (domain["spec"].get("nodeSelector") or {}).get("matchLabels") or {}
    return [n for n in nodes if all(n.labels.get(k) == v for k, v in selector.items())]
