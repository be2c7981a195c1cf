"""The cluster every schedule begins with: three services, two namespaces, one fabric, all Ready.

24 devices in two leaves. `default/shop` serves `chat` (Fixed, two groups) and `search` (Auto),
`team/mart` serves `chat` (Fixed, 2P1D). The crowded variant adds `team/late`, whose second group
waits for devices, and rolls scenarios one by one; the other one rolls them together. A schedule's
steps act through a `Scene`; `watcher` compares what the operator does with the true state of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

from pdserve.api import PDService, RoCEDomain, ScenarioGroup
from pdserve.api.base import ApiModel
from pdserve.controllers.shared.caches import PDSERVICES, ROCE_DOMAINS, SCENARIO_GROUPS
from pdserve.dst.api_fields import copy, merge_patch
from pdserve.dst.api_net import Faults
from pdserve.dst.metrics import SimulatedMetrics
from pdserve.dst.moments import now, stamp
from pdserve.dst.watcher import Watcher
from pdserve.dst.world import World
from pdserve.dst.world_service import service
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NODES, Object, ObjectKey, Resource, key_of
from pdserve.ratio.types import LoopSettings
from pdserve.terms.json import JsonObject
from pdserve.wire import names

DEVICES = 2
"""Per instance."""
NODE_DEVICES = 4
VARIANTS = ("roomy", "crowded")
NAMESPACES = ("default", "team")
SETTINGS = LoopSettings(
    control_period=60, fast_period=30, window=60, grow_dwell=60, shrink_dwell=600, cold_start=20
)
SUSPECT_SECONDS = 30.0
"""recovery.nodeSuspectSeconds of every service: the API's default."""
_OUR_KINDS: dict[Resource, type[ApiModel]] = {
    PDSERVICES: PDService,
    SCENARIO_GROUPS: ScenarioGroup,
    ROCE_DOMAINS: RoCEDomain,
}
BROKEN_IMAGE = "pdserve/engine:broken"


@dataclass(slots=True)
class Scene:
    """A running cluster with its operator, and handles for what a schedule does to it."""

    world: World
    watcher: Watcher
    metrics: SimulatedMetrics
    faults: Faults
    crowded: bool
    endings: list[Callable[[], None]] = field(default_factory=list)
    """What undoes the steps that are not over yet."""
    reverts: list[Callable[[], None]] = field(default_factory=list)
    """Those of `endings` that take back an image which never answers: groups of the image before
    must be repaired meanwhile."""
    planned: set[str] = field(default_factory=set)
    """Names of services whose users changed them."""
    faulted: set[tuple[str, str]] = field(default_factory=set)
    """Namespace and slot of instances that had a fault, or of which that is recorded."""
    _operator: asyncio.Task[None] | None = None

    # --- the operator ----------------------------------------------------------------------

    def start_operator(self) -> None:
        """A new operator process."""
        coroutine = self.world.operate(self.faults, self.metrics, SETTINGS)
        self._operator = asyncio.get_running_loop().create_task(coroutine)

    async def stop_operator(self) -> None:
        """Kill the operator process."""
        if self._operator is not None:
            self._operator.cancel()
            with suppress(BaseException):
                await self._operator
        self._operator = None

    def operator_failure(self) -> str | None:
        """How the operator process ended by itself; None while it runs or was killed."""
        task = self._operator
        if task is None or not task.done():
            return None
        error = None if task.cancelled() else task.exception()
        return f"the operator ended: {_innermost(error)}"

    # --- time ------------------------------------------------------------------------------

    def later(self, seconds: float, ending: Callable[[], None]) -> None:
        """Run `ending` after `seconds` (virtual), or when the schedule ends, whichever is first."""
        self.endings.append(ending)
        asyncio.get_running_loop().call_later(seconds, self._end, ending)

    def end_all(self) -> None:
        """Undo whatever still lasts."""
        for ending in list(self.endings):
            self._end(ending)

    def _end(self, ending: Callable[[], None]) -> None:
        if ending in self.endings:
            self.endings.remove(ending)
            ending()

    # --- objects ---------------------------------------------------------------------------

    def patch(
        self, obj: Object, body: object, resource: Resource, subresource: str | None = None
    ) -> None:
        """Merge-patch an object as a user would; nothing happens if it is gone or invalid."""
        meta = obj["metadata"]
        kind = _OUR_KINDS.get(resource)
        with suppress(Exception):
            if kind is not None:  # the in-memory API knows no schemas
                kind.parse(merge_patch(copy(self._live(resource, obj)), body))
            self.world.patch(
                resource, meta.get("namespace", ""), meta["name"], body, subresource=subresource
            )

    def _live(self, resource: Resource, obj: Object) -> Object:
        return self.world.api.store(resource).objects[key_of(obj)]

    def live_instances(self) -> list[Object]:
        """Instances that are not being deleted, in the order of their names."""
        pods = (p for p in self.world.instances() if "deletionTimestamp" not in p["metadata"])
        return [p for p in pods if p["metadata"]["uid"] not in self.watcher.foreign]

    def nodes(self) -> list[Object]:
        """All nodes."""
        return self.world.seen(NODES)

    def delete(self, resource: Resource, obj: Object) -> None:
        """DELETE as a user; nothing happens if it is gone."""
        meta = obj["metadata"]
        with suppress(Exception):
            self.world.api.handle(
                KubeRequest("delete", resource, meta.get("namespace"), meta["name"])
            )

    def node_ready(self, name: str, status: str) -> None:
        """Set a node's Ready condition."""
        body = {
            "status": {
                "conditions": [{"type": "Ready", "status": status, "lastTransitionTime": stamp()}]
            }
        }
        with suppress(Exception):
            self.world.patch(NODES, "", name, body, subresource="status")

    def on_node(self, name: str) -> list[Object]:
        """Instances bound to a node."""
        return [p for p in self.live_instances() if p["spec"].get("nodeName") == name]

    def harm(self, pods: Iterable[Object]) -> None:
        """The schedule broke these instances: replacing them is right."""
        for pod in pods:
            self.watcher.harmed[pod["metadata"]["uid"]] = asyncio.get_running_loop().time()

    def owe(self, pod: Object) -> None:
        """An instance that was well is lost: its successor must come soon.

        Not asked for where devices are short, where a user changes the service, where nodes or the
        domain are away, where its slot had a fault before (it backs off), or where it was leaving.
        """
        meta = pod["metadata"]
        slot = (meta["namespace"], names.slot_of(meta["name"]))
        service = meta["labels"].get(names.LABEL_SERVICE)
        known = slot in self.faulted
        self.faulted.add(slot)
        calm = not self.endings or self.endings == self.reverts
        leaves = names.ANNOTATION_DRAIN in meta.get("annotations", {})
        if not (self.crowded or known or self.planned or service is None or leaves) and calm:
            self.watcher.owed[slot] = asyncio.get_running_loop().time()


@asynccontextmanager
async def settled(variant: str) -> AsyncIterator[Scene]:
    """A scene whose services are Ready; the same for every call."""
    world = World(seed=1, namespaces=NAMESPACES, step=0.25)
    world.nodes(["a", "b"], per_leaf=3, devices=NODE_DEVICES)
    world.domain()
    watcher = Watcher(world)
    world.on_write = watcher.wrote
    scene = Scene(
        world, watcher, SimulatedMetrics(now), Faults(seed=1), crowded=variant == "crowded"
    )
    shop, mart, late = _services()
    if not scene.crowded:
        shop["spec"]["rollout"] = {"scenarios": "Together"}
    world.create(PDSERVICES, shop)
    world.create(PDSERVICES, mart)
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(world.running())
        scene.start_operator()
        stack.push_async_callback(scene.stop_operator)
        await world.until(lambda: _ready(world, ("default", "shop"), ("team", "mart")), 300)
        if scene.crowded:
            world.create(PDSERVICES, late)
            await world.until(lambda: len(world.routed("late", "team")) == 2, 300)
        await asyncio.sleep(40)
        watcher.begin()
        yield scene


def reseed(scene: Scene, seed: int) -> None:
    """Draw everything from `seed` from here on: faults of connections, names, jitter."""
    scene.world.rng.seed(seed)
    scene.world.operator_rng.seed(seed)
    scene.faults.rng.seed(seed)


def domain_object(scene: Scene) -> Object:
    """The RoCEDomain as a user would write it again."""
    live = copy(scene.world.api.store(ROCE_DOMAINS).objects[ObjectKey("", "az1")])
    return {**{k: live[k] for k in ("apiVersion", "kind", "spec")}, "metadata": {"name": "az1"}}


def _services() -> tuple[Object, Object, Object]:
    def fixed(groups: int, prefill: int, decode: int) -> JsonObject:
        counts = {"groups": groups, "prefill": prefill, "decode": decode}
        return {"mode": "Fixed", "fixed": counts}

    shop = service("shop", ("search", "chat"), devices=DEVICES, ratio=fixed(2, 1, 1))
    search = shop["spec"]["scenarios"][0]
    search["ratio"] = {**search["ratio"], "mode": "Auto"}
    search["ratio"].pop("fixed")
    search["groups"] = {"min": 1, "max": 2}
    mart = service("mart", devices=DEVICES, ratio=fixed(1, 2, 1), namespace="team")
    late = service("late", devices=DEVICES, ratio=fixed(2, 1, 1), namespace="team")
    return shop, mart, late


def _ready(world: World, *services: tuple[str, str]) -> bool:
    return all(world.service_ready(name, namespace) for namespace, name in services)


def _innermost(error: BaseException | None) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is None:
        return "without an error"
    trace, where = error.__traceback__, ""
    while trace is not None:
        code = trace.tb_frame.f_code
        where = f"{code.co_filename.rpartition('pdserve/')[2]}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return f"{type(error).__name__}: {str(error)[:200]} ({where})"
