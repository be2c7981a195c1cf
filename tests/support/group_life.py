"""Short cuts for tests in `group_world`: a world at rest, its pods, a plan's actions."""

from __future__ import annotations

from typing import Any

from tests.support.group_objects import Pod
from tests.support.group_world import World, wanted

from pdserve.groups import types as t

ROOMY = """p1 a  n1:8 n2:8 n3:8 n4:8
           p1 b  m1:8 m2:8 m3:8 m4:8
           p2 c  k1:8 k2:8 k3:8 k4:8"""
THREE = "p1 a  n1:8 n2:8 n3:8"


def world(drawing: str, counts_: str, replicas: int = 1, **more: Any) -> World:
    """A world at rest."""
    made = World(drawing, wanted(counts_, replicas, **more))
    made.settle()
    return made


def pods(w: World, role: str = "", index: int = 0) -> list[Pod]:
    """Pods of one group and role, by name."""
    return [
        w.pods[name]
        for name in sorted(w.pods)
        if w.pods[name].new.group_index == index and w.pods[name].new.role.startswith(role)
    ]


def uids(w: World) -> set[str]:
    return {p.uid for p in w.pods.values()}


def kinds(plan: t.Plan) -> list[str]:
    return [type(a).__name__ for a in plan.actions]
