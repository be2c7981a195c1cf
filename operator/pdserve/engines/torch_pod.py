"""What pods of engines on PyTorch have in common: where they may write, and names of models.

Restricted pods have a read-only root and a user without an entry in the image's passwd: `HOME` and
caches are a volume, and `USER` is set, because parts of PyTorch look the name up. Workers of one
engine share memory in `/dev/shm`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pdserve.engines.pod_parts import InstanceFacts
from pdserve.terms.json import JsonMap

ENGINE_PORT: Final = 8001
"""Where an engine behind the proxy listens."""
RENDEZVOUS_PORT: Final = 5601
"""Where the leader's engine waits for those of the other members of its instance."""
PREFETCH: Final = 2
"""Requests that a decode takes in while all slots run: their KV comes meanwhile."""
CACHE: Final = "/cache"
VOLUMES: Final[tuple[JsonMap, ...]] = (
    {"name": "pdserve-cache", "emptyDir": {}},
    {"name": "pdserve-shm", "emptyDir": {"medium": "Memory"}},
)
MOUNTS: Final[tuple[JsonMap, ...]] = (
    {"name": "pdserve-cache", "mountPath": CACHE},
    {"name": "pdserve-shm", "mountPath": "/dev/shm"},  # noqa: S108 - the pod's own
)


def cache_env(user: str) -> Mapping[str, str]:
    """Variables by which caches land in the volume."""
    return {
        "HOME": CACHE,
        "USER": user,
        "HF_HOME": f"{CACHE}/huggingface",
        "XDG_CACHE_HOME": f"{CACHE}/xdg",
        "TRITON_CACHE_DIR": f"{CACHE}/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{CACHE}/inductor",
    }


def leader_of(facts: InstanceFacts) -> str:
    """The address of the instance's leader, as Kubernetes expands it in arguments."""
    return "$(PDSERVE_LEADER_ADDRESS)" if facts.member else "$(PDSERVE_POD_IP)"


def prefetch(facts: InstanceFacts) -> int:
    """Requests that an instance takes beyond its slots."""
    return PREFETCH if facts.role == "decode" else 0


def weights_of(facts: InstanceFacts) -> str:
    """The directory, or the model's name on a hub: never a flag, and nothing in it is expanded."""
    source = (facts.weights or facts.model).replace("$", "$$")
    return f"./{source}" if source.startswith("-") else source
