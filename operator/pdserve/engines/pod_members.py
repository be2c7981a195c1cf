"""What pods of an engine type have: a proxy, control paths of members, variables of members."""

from __future__ import annotations

import dataclasses

from pdserve.engines import registry
from pdserve.engines.pod_parts import InstanceFacts
from pdserve.terms.json import JsonObject

_SAMPLE = InstanceFacts(role="prefill", slots=1, devices=1, model="m", weights="")


def member_env(member: int, members: int) -> list[JsonObject]:
    """Variables that say which member of how many a pod is; none where it is the only one."""
    if members == 1:
        return []
    return [
        {"name": "PDSERVE_MEMBER", "value": str(member)},
        {"name": "PDSERVE_MEMBERS", "value": str(members)},
    ]


def has_proxy(engine_type: str) -> bool:
    """Whether the engine proxy stands in pods of this type; False for a type that is not usable."""
    try:
        return bool(registry.pod(engine_type).parts(_SAMPLE).proxy)
    except Exception:  # code of others; `render_pod` tells what is wrong
        return False


def members_answer(engine_type: str) -> bool:
    """Whether members that do not lead have control paths; False for a type that is not usable."""
    try:
        facts = dataclasses.replace(_SAMPLE, member=1, members=2)
        return bool(registry.pod(engine_type).parts(facts).health_path)
    except Exception:  # code of others; `render_pod` tells what is wrong
        return False
