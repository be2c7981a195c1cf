"""A simulated cluster for the operator as a whole, and what tests ask of it."""

from __future__ import annotations

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.dst.world import World
from pdserve.dst.world_service import NS


def make(seed: int = 0) -> World:
    world = World(seed=seed)
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


def names_of(world: World) -> set[str]:
    return {p["metadata"]["name"] for p in world.instances()}


def uids_of(world: World) -> set[str]:
    return {p["metadata"]["uid"] for p in world.instances()}


def fix_counts(world: World, groups: int, prefill: int, decode: int) -> None:
    ratio = {"fixed": {"groups": groups, "prefill": prefill, "decode": decode}}
    spec = world.existing(PDSERVICES, "shop")["spec"]
    spec["scenarios"][0]["ratio"] |= ratio
    world.patch(PDSERVICES, NS, "shop", {"spec": {"scenarios": spec["scenarios"]}})
