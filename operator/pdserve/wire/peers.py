"""Peer table: who belongs to one P/D group, and how to reach them.

One ConfigMap per P/D group holds it, version inside, so one object write swaps the whole
table (P/D-Serve section 3.2: the `<Scenario, P, D>` map of the meta store). The operator also
pushes it to every instance. Versions only rise.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pdserve.terms import ROLES, Device, Role
from pdserve.terms.json import JsonObject
from pdserve.wire import bounds
from pdserve.wire.bounds import Fields, WireError

SCHEMA_VERSION = 1
FULL_BYTES = 900_000
"""A table of up to this many bytes names all devices."""
MAX_DEVICE = 65_535
"""Largest device id of a node."""


@dataclass(frozen=True, slots=True)
class PeerNode:
    """The part of an instance that runs on one node."""

    name: str
    devices: tuple[Device, ...] = ()
    transfer: str = ""
    """`host:port` of the KV transport there; empty for the leader, whose `Peer.transfer` it is."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One instance as its peers see it.

    Both of its leader: `endpoint`, an http URL without trailing slash, and `transfer`, `host:port`
    of the KV transport. `nodes`: those of its members, the leader's first. `domains` maps
    RoCEDomain level names to the values where it runs.
    """

    id: str
    role: Role
    endpoint: str
    transfer: str
    revision: str
    domains: Mapping[str, str] = dataclasses.field(default_factory=dict)
    nodes: tuple[PeerNode, ...] = ()


@dataclass(frozen=True)
class PeerTable:
    """All linked-or-linking instances of one P/D group at one version."""

    group: str
    version: int
    instances: tuple[Peer, ...]
    tier_costs: Mapping[str, int] = dataclasses.field(default_factory=dict)
    unreachable: tuple[tuple[str, str], ...] = ()
    """Pairs (prefill id, decode id) the fabric cannot connect."""

    def peer(self, instance: str) -> Peer | None:
        """The entry of one instance by name, or None where the table does not have it."""
        return self._by_id.get(instance)

    @functools.cached_property
    def _by_id(self) -> Mapping[str, Peer]:
        return {p.id: p for p in reversed(self.instances)}

    def opposite(self, instance: str) -> tuple[Peer, ...]:
        """The peers that `instance` must hold links to: those of the other role."""
        me = self.peer(instance)
        if me is None:
            return ()
        pairs = {frozenset(p) for p in self.unreachable}
        return tuple(
            p for p in self.instances if p.role != me.role and frozenset((p.id, me.id)) not in pairs
        )

    def encoded(self) -> str:
        """The table as it is stored: one line of JSON in UTF-8, the same for equal tables."""
        value = self.to_json()
        return json.dumps(value, separators=(",", ":"), sort_keys=True, ensure_ascii=False)

    def fitted(self) -> PeerTable:
        """The table, without the devices of its nodes where they would not fit a ConfigMap.

        Instances reach each other by `transfer` then, devices or not. At the API's bounds, every
        instance doubled by its substitute, the rest is below 1 MiB.
        """
        if len(self.encoded().encode()) <= FULL_BYTES:
            return self
        bare = tuple(
            dataclasses.replace(p, nodes=tuple(dataclasses.replace(n, devices=()) for n in p.nodes))
            for p in self.instances
        )
        return dataclasses.replace(self, instances=bare)

    def to_json(self) -> JsonObject:
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
                    "nodes": [_node_json(n) for n in p.nodes],
                }
                for p in self.instances
            ],
            "tierCosts": dict(self.tier_costs),
            "unreachable": [list(pair) for pair in self.unreachable],
        }

    @staticmethod
    def from_json(value: object) -> PeerTable:
        """Parse `to_json`'s value; fields of newer versions are ignored.

        Raises:
            WireError: the value is not a peer table of schema version 1; the message has the path.
        """
        table = Fields(value, "peer table")
        table.schema(SCHEMA_VERSION)
        return PeerTable(
            group=table.text("group"),
            version=table.integer("version", high=bounds.MAX_VERSION),
            instances=tuple(_peer(p) for p in table.objects("instances")),
            tier_costs=table.integer_map("tierCosts", {}),
            unreachable=tuple(_pair(table, i) for i in range(len(table.items("unreachable", [])))),
        )


def _pair(table: Fields, index: int) -> tuple[str, str]:
    path = f"{table.path}.unreachable[{index}]"
    pair = bounds.items(table.items("unreachable")[index], path, most=2)
    if len(pair) != 2:
        raise WireError(f"{path}: want two instances, got {len(pair)}")
    return bounds.text(pair[0], path), bounds.text(pair[1], path)


def _node_json(node: PeerNode) -> JsonObject:
    return {
        "name": node.name,
        "devices": [{"id": d.id, "ip": d.ip} for d in node.devices],
        **({"transfer": node.transfer} if node.transfer else {}),
    }


def _peer(peer: Fields) -> Peer:
    return Peer(
        id=peer.text("id"),
        role=peer.choice("role", ROLES),
        endpoint=peer.endpoint("endpoint"),
        transfer=peer.text("transfer"),
        revision=peer.text("revision", ""),
        domains=peer.text_map("domains", {}),
        nodes=tuple(
            PeerNode(
                name=node.text("name"),
                devices=tuple(device_of(d) for d in node.objects("devices", [])),
                transfer=node.text("transfer", ""),
            )
            for node in peer.objects("nodes", [])
        ),
    )


def device_of(device: Fields) -> Device:
    """One accelerator as tables and node annotations write it.

    Whether `ip` is an address is not checked.

    Raises:
        WireError: `id` is no whole number from 0 to MAX_DEVICE, or `ip` no text of at most 64
            characters.
    """
    return Device(device.integer("id", high=MAX_DEVICE), device.text("ip", None, most=64))
