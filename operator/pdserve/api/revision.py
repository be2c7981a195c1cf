"""Revision of a ScenarioGroup: a short hash of everything that changes a pod."""

from __future__ import annotations

import hashlib
import json

from pdserve.api.scenariogroup import GroupRole, ScenarioGroupSpec
from pdserve.frozen import Memo

_NOT_OF_THE_POD = {"replicas", "startup_deadline_seconds"}


def revision_of(spec: ScenarioGroupSpec) -> str:
    """Eight hex digits; equal for two specs whose pods are interchangeable.

    Left out, because running pods need not be replaced for them: the counts, locality, recovery
    and startup deadline. Fields at their default are left out too, so that an operator which
    knows a new field finds the revision that the one before it wrote.
    """
    return _known.of(lambda: _revision(spec), spec)


_known: Memo[str] = Memo()


def _revision(spec: ScenarioGroupSpec) -> str:
    pod = {
        "model": spec.model.model_dump(mode="json", exclude_defaults=True),
        "engine": spec.engine.model_dump(mode="json", exclude_defaults=True),
        "prefill": _role(spec.prefill),
        "decode": _role(spec.decode),
        "domain": spec.fabric.domain_ref.name,
    }
    text = json.dumps(pod, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _role(role: GroupRole) -> object:
    return role.model_dump(mode="json", exclude_defaults=True, exclude=_NOT_OF_THE_POD)
