"""What one engine type adds to the pod of an instance.

`pods.render_pod` makes what all instances have (labels, pin, readiness gate, ports, devices,
credentials, the PDSERVE_* variables, the restricted security context); an `EnginePod` gives the
rest, and `PodSettings` is what the operator is run with. Where an instance listens is pdserve's
own and equal for all types: HTTP on `names.PORT_HTTP`, KV on `names.PORT_TRANSFER`. Needs no models
of the API.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from pdserve.terms import Role
from pdserve.terms.json import JsonMap
from pdserve.wire import calls


@dataclass(frozen=True, slots=True)
class InstanceFacts:
    """What a spec says of an instance."""

    role: Role
    slots: int
    """Requests it executes at once: b_p or b_d."""
    devices: int
    """Devices of each of its pods."""
    model: str
    """What clients call the model; the gateway sends it in every leg's body."""
    weights: str
    """Absolute path inside the container; empty: the engine's own default."""
    peer_slots: int = 0
    """Requests that an instance of the other role executes at once; 0: not known."""
    peer_devices: int = 0
    """Devices of an instance of the other role, of all its pods; 0: not known."""
    member: int = 0
    """Which pod of its instance; 0 is the leader, which answers for all."""
    members: int = 1
    """Pods of its instance. In those but the leader's, the variable `PDSERVE_LEADER_ADDRESS` has
    the leader's address where `PodParts.awaits_leader` asks for it."""

    @property
    def all_devices(self) -> int:
        """Of all pods of the instance."""
        return self.devices * self.members


@dataclass(frozen=True, slots=True)
class PodParts:
    """What a pod has for its engine; the spec's own `args` and `env` come after these."""

    args: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    """Instead of the image's entrypoint; empty: the image's."""
    env: Mapping[str, str] = field(default_factory=dict)
    health_path: str = calls.PATH_HEALTH
    """200 while the process is up; empty: it answers nothing over HTTP. Only a member that is not
    the leader may be so: it is up and ready while its container runs, and the leader says whether
    the instance is."""
    ready_path: str = calls.PATH_READY
    """200 once the links of a peer table that names the instance are verified, until it drains."""
    metrics_path: str = calls.PATH_METRICS
    mounts: tuple[JsonMap, ...] = ()
    """Further volumeMounts of the engine's container."""
    volumes: tuple[JsonMap, ...] = ()
    """Further volumes of the pod, e.g. shared memory."""
    containers: tuple[JsonMap, ...] = ()
    """Further containers."""
    proxy: tuple[str, ...] = ()
    """Arguments of pdserve's engine proxy (`pdserve-engine-proxy --help`), which then listens where
    the instance does; the engine listens elsewhere. Empty: the engine has the contract itself."""
    flips: bool = False
    """The engine takes the other role when a peer table names it in that one, and starts in the
    role that the variable `PDSERVE_ROLE` says; nothing else of `PodParts` depends on the role."""
    awaits_leader: bool = False
    """The engine's container of a member starts once the leader's address is known to it."""


@dataclass(frozen=True, slots=True)
class PodSettings:
    """What the operator is run with, for the pods of all instances."""

    own_image: str = "pdserve/gateway:latest"
    """Has the engine proxy and the downloader of weights."""
    model_cache: str = ""
    """Directory of the nodes that keeps downloaded weights; empty: each pod downloads its own."""
    cached_namespaces: frozenset[str] = frozenset()
    """Those whose pods use it; none: all."""

    def cache_of(self, namespace: str) -> str:
        """The directory of the nodes that pods of this namespace use; empty: none."""
        wanted = not self.cached_namespaces or namespace in self.cached_namespaces
        return self.model_cache if wanted else ""


@runtime_checkable
class EnginePod(Protocol):
    """The pods of one engine type. Pure: equal facts give equal parts."""

    def parts(self, facts: InstanceFacts) -> PodParts:
        """What an instance with these facts needs."""


def text_flag(flag: str, value: str) -> tuple[str, ...]:
    """A flag with any text as its value: `$(X)` is not expanded, a leading `-` is no flag."""
    text = value.replace("$", "$$")
    return (f"{flag}={text}",) if text.startswith("-") else (flag, text)
