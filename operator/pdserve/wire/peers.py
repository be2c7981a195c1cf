"""Peer table: who belongs to one P/D group, and how to reach them.

One ConfigMap per P/D group holds it, version inside, so one object write swaps the whole
table (P/D-Serve section 3.2: the `<Scenario, P, D>` map of the meta store). The operator also
pushes it to every instance. Versions only rise.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Role = Literal["prefill", "decode"]
ROLES: tuple[Role, Role] = ("prefill", "decode")

SCHEMA_VERSION = 1
MAX_BYTES = 1 << 20
"""A ConfigMap's limit; builders refuse larger tables."""


class WireError(ValueError):
    """A document from another process does not have the agreed shape; the message says where."""


@dataclass(frozen=True, slots=True)
class Device:
    """One accelerator: its index on the node and its RoCE address (None where unknown)."""

    id: int
    ip: str | None = None


@dataclass(frozen=True, slots=True)
class PeerNode:
    """The part of an instance that runs on one node."""

    name: str
    devices: tuple[Device, ...] = ()


@dataclass(frozen=True, slots=True)
class Peer:
    """One instance as its peers see it.

    `endpoint` is an http URL without trailing slash; `transfer` is `host:port` of the KV
    transport; `domains` maps RoCEDomain level names to the values where it runs.
    """

    id: str
    role: Role
    endpoint: str
    transfer: str
    revision: str
    domains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nodes: tuple[PeerNode, ...] = ()


@dataclass(frozen=True, slots=True)
class PeerTable:
    """All linked-or-linking instances of one P/D group at one version."""

    group: str
    version: int
    instances: tuple[Peer, ...]
    tier_costs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unreachable: tuple[tuple[str, str], ...] = ()
    """Pairs (prefill id, decode id) the fabric cannot connect."""

    def peer(self, instance: str) -> Peer | None:
        """The entry of one instance, or None."""
        return next((p for p in self.instances if p.id == instance), None)

    def opposite(self, instance: str) -> tuple[Peer, ...]:
        """The peers that `instance` must hold links to: those of the other role."""
        me = self.peer(instance)
        if me is None:
            return ()
        pairs = {frozenset(p) for p in self.unreachable}
        return tuple(
            p for p in self.instances if p.role != me.role and frozenset((p.id, me.id)) not in pairs
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON value, keys in camelCase as on the wire."""
        return {
            "schemaVersion": SCHEMA_VERSION,
            "group": self.group,
            "version": self.version,
            "instances": [
                {
                    "id": p.id,
                    "role": p.role,
                    "endpoint": p.endpoint,
                    "transfer": p.transfer,
                    "revision": p.revision,
                    "domains": dict(p.domains),
                    "nodes": [
                        {"name": n.name, "devices": [{"id": d.id, "ip": d.ip} for d in n.devices]}
                        for n in p.nodes
                    ],
                }
                for p in self.instances
            ],
            "tierCosts": dict(self.tier_costs),
            "unreachable": [list(pair) for pair in self.unreachable],
        }

    @staticmethod
    def from_json(value: Any) -> PeerTable:
        """Parse `to_json`'s value.

        Raises:
            WireError: the value is not a peer table of schema version 1.
        """
        try:
            if value["schemaVersion"] != SCHEMA_VERSION:
                raise WireError(
                    f"peer table: schemaVersion {value['schemaVersion']!r}, "
                    f"this process reads {SCHEMA_VERSION}"
                )
            return PeerTable(
                group=str(value["group"]),
                version=int(value["version"]),
                instances=tuple(_peer(p) for p in value["instances"]),
                tier_costs={str(k): int(v) for k, v in value.get("tierCosts", {}).items()},
                unreachable=tuple((str(a), str(b)) for a, b in value.get("unreachable", [])),
            )
        except WireError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise WireError(f"peer table: {type(error).__name__}: {error}") from error


def _peer(value: Any) -> Peer:
    role = value["role"]
    if role not in ROLES:
        raise WireError(f"peer table: instance {value.get('id')!r} has role {role!r}")
    return Peer(
        id=str(value["id"]),
        role=role,
        endpoint=str(value["endpoint"]).rstrip("/"),
        transfer=str(value["transfer"]),
        revision=str(value.get("revision", "")),
        domains={str(k): str(v) for k, v in value.get("domains", {}).items()},
        nodes=tuple(
            PeerNode(
                name=str(n["name"]),
                devices=tuple(Device(int(d["id"]), d.get("ip")) for d in n.get("devices", [])),
            )
            for n in value.get("nodes", [])
        ),
    )
