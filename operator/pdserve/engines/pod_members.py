"""What pods of an engine type have: a proxy, control paths of members, variables of members."""

from __future__ import annotations

import dataclasses
from typing import Final

from pdserve.engines import registry
from pdserve.engines.pod_parts import InstanceFacts
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.wire import names

_SAMPLE = InstanceFacts(role="prefill", slots=1, devices=1, model="m", weights="")


AWAIT_CONTAINER: Final = "pdserve-await-leader"
AWAIT_COMMAND: Final = ("/opt/pdserve/bin/python", "-m", "pdserve.engineproxy.await_leader")
_LEADER_DIR: Final = "/etc/pdserve/leader"
_LEADER_FIELD: Final = {"fieldPath": f"metadata.annotations['{names.ANNOTATION_LEADER_ADDRESS}']"}
_VOLUME: Final = "pdserve-leader"
LEADER_VOLUME: Final[JsonMap] = {
    "name": _VOLUME,
    "downwardAPI": {"items": [{"path": "address", "fieldRef": _LEADER_FIELD}]},
}
"""The operator's annotation as a file, which changes when the annotation does."""
LEADER_ADDRESS: Final[JsonMap] = {
    "name": "PDSERVE_LEADER_ADDRESS", "valueFrom": {"fieldRef": _LEADER_FIELD},
}  # fmt: skip
"""The same as a variable: what it is when the container starts."""


def await_leader(image: str) -> JsonObject:
    """The init container that ends once the leader's address is known; `image` has the proxy."""
    return {
        "name": AWAIT_CONTAINER,
        "image": image,
        "command": list(AWAIT_COMMAND),
        "args": [f"{_LEADER_DIR}/address"],
        "resources": {
            "requests": {"cpu": "10m", "memory": "32Mi"}, "limits": {"memory": "128Mi"},
        },
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": _VOLUME, "mountPath": _LEADER_DIR, "readOnly": True}],
    }  # fmt: skip


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
