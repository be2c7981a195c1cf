"""How many instances one node holds once all that they take beside devices counts. Pure.

Linear resources (CPU, memory, huge pages, other devices, the number of pods) add up; a host port
serves one pod. The answer is a frontier, "most decodes beside p prefills". `capacity` carries it
only where it differs from what devices alone allow, and skips this module while every node has
enough of everything but devices.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pdserve.placement.types import Shape
from pdserve.topology import Fabric
from pdserve.topology.requests import amount_text, is_port, port_conflicts, port_text


@dataclass(frozen=True, slots=True)
class Beside:
    """What instances of two shapes take beside the devices of their roles."""

    amounts: tuple[tuple[str, int, int], ...]
    """Resource, and how much of it a prefill and a decode take."""
    ports: tuple[tuple[str, ...], tuple[str, ...]]
    """Host ports of a prefill and of a decode."""
    apart: bool
    """The two roles cannot share a node, for a host port."""

    @staticmethod
    def of(prefill: Shape, decode: Shape) -> Beside:
        """What instances of both shapes take beside devices: CPU, memory, pods, host ports."""
        p, d = dict(prefill.requests), dict(decode.requests)
        named = [r for r in sorted({*p, *d}) if not is_port(r)]
        if prefill.resource != decode.resource:
            # What one role counts as its devices the other may take beside its own.
            p, d = {**p, prefill.resource: prefill.devices}, {**d, decode.resource: decode.devices}
        ports = _ports(prefill), _ports(decode)
        taken = dict(decode.requests)
        apart = any(other in taken for key in ports[0] for other in port_conflicts(key))
        return Beside(tuple((r, p.get(r, 0), d.get(r, 0)) for r in named), ports, apart)

    def caps(self, fabric: Fabric, node: str, devices: Offer) -> Caps | None:
        """What binds on a node that offers these devices; None: nothing beside them."""
        prefills, decodes = devices.most
        amounts = []
        for resource, per_p, per_d in self.amounts:
            have = fabric.left(node, resource)
            if have is not None and devices.may_exceed(per_p, per_d, max(0, have)):
                amounts.append((max(0, have), per_p, per_d))
        free = [all(fabric.has_port(node, key) for key in keys) for keys in self.ports]
        most_p = min(prefills, int(free[0])) if self.ports[0] else prefills
        most_d = min(decodes, int(free[1])) if self.ports[1] else decodes
        if not amounts and not self.apart and (most_p, most_d) == devices.most:
            return None
        return Caps(tuple(amounts), most_p, most_d, self.apart)


@dataclass(frozen=True, slots=True)
class Offer:
    """Devices of one node for two roles of these sizes; `shared`: of one pool."""

    prefill: int
    decode: int
    sizes: tuple[int, int]
    shared: bool

    @property
    def most(self) -> tuple[int, int]:
        """Most prefills, and most decodes, each without any of the other."""
        return self.prefill // self.sizes[0], self.decode // self.sizes[1]

    def frontier(self) -> tuple[int, ...]:
        """Most decodes beside p prefills, by p from 0 to the most prefills."""
        prefills, decodes = self.most
        if not self.shared:
            return (decodes,) * (prefills + 1)
        pool = max(self.prefill, self.decode)
        p, d = self.sizes
        return tuple(min(self.decode, pool - n * p) // d for n in range(prefills + 1))

    def may_exceed(self, per_prefill: int, per_decode: int, have: int) -> bool:
        """Whether instances on these devices could take more of a resource than there is.

        True also now and then where none does: for shared devices an upper bound is compared.
        """
        prefills, decodes = self.most
        if not self.shared:
            return prefills * per_prefill + decodes * per_decode > have
        pool, (p, d) = max(self.prefill, self.decode), self.sizes
        return pool * per_prefill > have * p or pool * per_decode > have * d


@dataclass(frozen=True, slots=True)
class Caps:
    """What binds on one node."""

    amounts: tuple[tuple[int, int, int], ...]
    """What is left of a resource, and how much of it a prefill and a decode take."""
    prefills: int
    decodes: int
    apart: bool

    def frontier(self, devices: Sequence[int]) -> tuple[int, ...]:
        """Most decodes beside p prefills, by p; `devices`: the same by devices alone."""
        found: list[int] = []
        for prefills, decodes in enumerate(devices[: self.prefills + 1]):
            beside = 0 if self.apart and prefills else min(decodes, self.decodes)
            for have, per_p, per_d in self.amounts:
                rest = have - prefills * per_p
                beside = -1 if rest < 0 else min(beside, rest // per_d) if per_d else beside
                if beside < 0:
                    return tuple(found)
            found.append(beside)
        return tuple(found)


def _ports(shape: Shape) -> tuple[str, ...]:
    return tuple(r for r, _ in shape.requests if is_port(r))


def shortage(fabric: Fabric, node: str, resource: str, amount: int) -> bool:
    """Whether a node has less of a resource than an instance takes, or not its host port."""
    if is_port(resource):
        return not fabric.has_port(node, resource)
    have = fabric.left(node, resource)
    return have is not None and have < amount


def shortage_text(resource: str, amount: int, lacking: int, nodes: int) -> str:
    """That so many of these nodes are short of a resource."""
    if is_port(resource):
        return f"host port {port_text(resource)}: {lacking} of {nodes} nodes have it taken"
    return f"{resource}: {lacking} of {nodes} nodes lack {amount_text(resource, amount)}"
