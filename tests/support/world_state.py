"""Conditions of a simulated cluster, for `World.until`."""

from __future__ import annotations

from pdserve.dst.world import World


def unrouted(world: World, name: str) -> bool:
    """Whether no route table names the instance."""
    return name not in world.routed()


def routes_count(world: World, count: int) -> bool:
    """Whether exactly `count` instances are routed."""
    return len(world.routed()) == count
