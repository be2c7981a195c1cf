"""Steps that break pods, engines, nodes and devices."""

from __future__ import annotations

import asyncio
import random

from pdserve.dst.scene import SUSPECT_SECONDS, Scene
from pdserve.dst.steps.picks import an_instance, ip_of, name_of
from pdserve.kube.resource import NODES, PODS
from pdserve.wire import names


async def delete_pod(scene: Scene, rng: random.Random) -> str | None:
    """A user deletes an instance."""
    pod = an_instance(scene, rng)
    if pod is None:
        return None
    scene.harm([pod])
    scene.owe(pod)
    scene.watcher.deleted[pod["metadata"]["uid"]] = (asyncio.get_running_loop().time(), pod)
    scene.delete(PODS, pod)
    return f"delete pod {name_of(pod)}"


async def kill_pod(scene: Scene, rng: random.Random) -> str | None:
    """An instance fails for good."""
    pod = an_instance(scene, rng)
    if pod is None or pod.get("status", {}).get("phase") != "Running":
        return None
    scene.harm([pod])
    scene.owe(pod)
    scene.world.kill(name_of(pod))
    return f"pod {name_of(pod)} fails"


async def restart_container(scene: Scene, rng: random.Random) -> str | None:
    """An engine's container restarts in place."""
    pod = an_instance(scene, rng)
    if pod is None or not pod.get("status", {}).get("podIP"):
        return None
    scene.world.machinery.restart(name_of(pod), pod["metadata"]["namespace"])
    return f"container of {name_of(pod)} restarts"


async def freeze_engine(scene: Scene, rng: random.Random) -> str | None:
    """An engine answers no request for a while."""
    pod = an_instance(scene, rng)
    engine = None if pod is None else scene.world.engines.by_ip.get(ip_of(pod))
    if pod is None or engine is None or engine.frozen:
        return None
    seconds = rng.uniform(1, 40)
    engine.frozen, engine.stopped_at = True, asyncio.get_running_loop().time()

    def thaw() -> None:
        engine.frozen = False

    scene.later(seconds, thaw)
    return f"engine of {name_of(pod)} stands still for {seconds:.0f} s"


async def lose_node(scene: Scene, rng: random.Random) -> str | None:
    """A node is cut off; a long time makes its instances lost, a short one does not."""
    node = rng.choice(scene.nodes())["metadata"]["name"]
    world = scene.world
    if world.broken_nodes:
        return None
    seconds = rng.choice((5.0, 15.0, 60.0, 120.0))
    pods = scene.on_node(node)
    engines = [e for p in pods if (e := world.engines.by_ip.get(ip_of(p))) and not e.frozen]
    world.lose_node(node)
    # A cut node does not tell that a pod failed the moment before, and keeps the devices of one
    # that is being deleted.
    for pod in world.instances():
        if pod["spec"].get("nodeName") == node:
            slot = name_of(pod).rpartition("-")[0]
            scene.watcher.owed.pop((pod["metadata"]["namespace"], slot), None)
    for engine in engines:
        engine.frozen = True
    if seconds > SUSPECT_SECONDS - 5:
        scene.harm(pods)

    def back() -> None:
        world.broken_nodes.discard(node)
        for engine in engines:
            engine.frozen = False
        scene.node_ready(node, "True")

    scene.later(seconds, back)
    return f"node {node} is cut off for {seconds:.0f} s"


async def flap_node(scene: Scene, rng: random.Random) -> str | None:
    """A node is NotReady for less than nodeSuspectSeconds."""
    node = rng.choice(scene.nodes())["metadata"]["name"]
    if node in scene.world.broken_nodes:
        return None
    seconds = rng.uniform(1, SUSPECT_SECONDS - 10)
    scene.node_ready(node, "False")

    def back() -> None:
        if node not in scene.world.broken_nodes:  # cut off meanwhile, it can report nothing
            scene.node_ready(node, "True")

    scene.later(seconds, back)
    return f"node {node} is NotReady for {seconds:.0f} s"


async def break_device(scene: Scene, rng: random.Random) -> str | None:
    """All devices of a node are unhealthy for a while."""
    node = rng.choice(scene.nodes())
    name = node["metadata"]["name"]
    scene.harm(scene.on_node(name))
    key = names.ANNOTATION_UNHEALTHY_DEVICES
    scene.patch(node, {"metadata": {"annotations": {key: "0,1,2,3"}}}, NODES)

    def heal() -> None:
        scene.patch(node, {"metadata": {"annotations": {key: None}}}, NODES)

    seconds = rng.uniform(5, 60)
    scene.later(seconds, heal)
    return f"devices of {name} are unhealthy for {seconds:.0f} s"


async def cordon(scene: Scene, rng: random.Random) -> str | None:
    """A node takes no new pods for a while."""
    node = rng.choice(scene.nodes())
    scene.patch(node, {"spec": {"unschedulable": True}}, NODES)

    def undo() -> None:
        scene.patch(node, {"spec": {"unschedulable": None}}, NODES)

    seconds = rng.uniform(5, 60)
    scene.later(seconds, undo)
    return f"cordon {name_of(node)} for {seconds:.0f} s"


async def slow_starts(scene: Scene, rng: random.Random) -> str | None:
    """Pods that start from now on take long."""
    world, usual = scene.world, scene.world.start_seconds
    world.start_seconds = (20.0, 80.0)

    def undo() -> None:
        world.start_seconds = usual

    scene.later(rng.uniform(10, 60), undo)
    return "pods start slowly"


async def streams(scene: Scene, rng: random.Random) -> str | None:
    """Instances have requests running."""
    pods = [p for p in scene.live_instances() if rng.random() < 0.5]
    found = [e for p in pods if (e := scene.world.engines.by_ip.get(ip_of(p)))]
    engines = [e for e in found if e.linked_once and not e.draining]
    for engine in engines:
        engine.busy = 3

    def done() -> None:
        for engine in engines:
            engine.busy = 0

    seconds = rng.uniform(5, 90)
    scene.later(seconds, done)
    return f"{len(engines)} instances have streams for {seconds:.0f} s"
