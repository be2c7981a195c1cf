"""Which pods may change their role while they run, and where their engine reads it from.

`groups.flip` decides when; here is what a pod needs so that an engine that restarts comes back in
the role that its pod's label says at that time.
"""

from __future__ import annotations

from pdserve.api import ScenarioGroup
from pdserve.engines.pod_parts import PodParts
from pdserve.terms import Role
from pdserve.terms.json import JsonObject
from pdserve.wire import names


def may_flip(group: ScenarioGroup, parts: PodParts) -> bool:
    """Whether the engine can, and the two roles' pods differ in nothing else."""
    if not parts.flips:
        return False
    prefill, decode = (
        role.model_dump(exclude={"replicas", "max_concurrency"})
        for role in (group.spec.prefill, group.spec.decode)
    )
    return prefill == decode


def role_variable(role: Role, *, flips: bool) -> JsonObject:
    """The variable `PDSERVE_ROLE` of a container; of a pod that may flip, its label's value."""
    if not flips:
        return {"name": "PDSERVE_ROLE", "value": role}
    path = f"metadata.labels['{names.LABEL_ROLE}']"
    return {"name": "PDSERVE_ROLE", "valueFrom": {"fieldRef": {"fieldPath": path}}}
