"""What every operator process keeps, and all that its leader does.

Queue, caches and triggers live as long as the process; what acts is made anew for every leadership.
Neighbours: `app` runs it with a real cluster, `pdserve.dst` with an API server in memory; nothing
here needs kopf.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from pdserve.controllers.group.waiting import recall_claims
from pdserve.controllers.object_gauges import ObjectGauges
from pdserve.controllers.ratio.ratio_loop import RatioLoop
from pdserve.controllers.shared import event_reasons
from pdserve.controllers.shared.caches import Caches, make_caches
from pdserve.controllers.shared.clock import Clock, NodeSilence
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.device_claims import Claims
from pdserve.controllers.shared.fabrics import Fabrics
from pdserve.controllers.shared.instance_calls import EngineApi
from pdserve.controllers.shared.linker import Linker
from pdserve.controllers.shared.metrics import OperatorMetrics
from pdserve.controllers.shared.node_changes import NodeChanges
from pdserve.controllers.shared.promises import Promises
from pdserve.controllers.shared.scope import Scope
from pdserve.controllers.shared.shapes_in_use import ShapesInUse
from pdserve.controllers.shared.skipped import Skipped
from pdserve.controllers.shared.taken import Taken
from pdserve.controllers.shared.tokens import Tokens
from pdserve.controllers.shared.triggers import Triggers, group_key
from pdserve.controllers.shared.unsettled import Unsettled
from pdserve.controllers.shared.volumes import Volumes
from pdserve.controllers.worker import resync, work
from pdserve.engines.pod_parts import PodSettings
from pdserve.engines.pod_profile import Rights
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.events import EventRecorder, Reporter
from pdserve.kube.resource import ObjectKey
from pdserve.kube.workqueue import WorkQueue
from pdserve.ratio.types import LoopSettings
from pdserve.telemetry.source import MetricsSource

log = logging.getLogger(__name__)

COMPONENT: Final = "pdserve-operator"
SPACING: Final = 0.02
"""Seconds between two reconciliations of one object: a change comes with others close by."""
FIRST_REPORT: Final = 1.0
WAITING_REPORT: Final = 10.0
"""Seconds until the first, and between further, log lines that say what start-up waits for."""

MakeEngines = Callable[[Tokens], Awaitable[EngineApi]]


class Core:
    """Queue, caches and triggers of one process; makes what acts anew for every leadership.

    Used by `run` with a real cluster, and by the simulation with the in-memory API model.
    """

    def __init__(
        self,
        client: KubeClient,
        *,
        namespace: str | None,
        gateway_image: str,
        operator_namespace: str,
        registry: Registry,
        now: Callable[[], float],
        rng: random.Random,
        workers: int = 4,
        resync_seconds: float = 600.0,
        identity: str = "",
        rights: Rights | None = None,
        pod_settings: PodSettings | None = None,
    ) -> None:
        self.client = client
        self.registry = registry
        self.queue = WorkQueue(per_namespace=workers, spacing=SPACING, registry=registry, rng=rng)
        self.metrics = OperatorMetrics(registry)
        self.scope = Scope()
        self.skips = Skipped(self.metrics, self.scope)
        self.caches: Caches = make_caches(client, namespace, registry, self.skips, rng)
        self.fabrics = Fabrics(self.caches)
        self.shapes = ShapesInUse(self.caches)
        self.unsettled = Unsettled(self.caches)
        self.triggers = Triggers(self.caches, self.queue, self.unsettled)
        self._gauges = ObjectGauges(registry, self.caches)
        self.synced = False
        self._gateway_image = gateway_image
        self._pod_settings = pod_settings or PodSettings(gateway_image)
        self._operator_namespace = operator_namespace
        steady = asyncio.get_running_loop().time
        self.clock = Clock(now, steady)
        self.silence = NodeSilence(steady)
        self.caches.pods.on_change(self.clock.forget)
        self.caches.groups.on_change(self.clock.forget)
        self.caches.nodes.on_change(self.silence.changed)
        self.node_changes = NodeChanges(self.caches, self.clock.now)
        self.volumes = Volumes(client, self.caches, steady)
        self.claims = Claims(self.scope)
        self.caches.pods.on_change(self.claims.pod_changed)
        self.caches.groups.on_change(self.claims.group_changed)
        self.promises = Promises(self.clock.now)
        self.caches.groups.on_change(self.promises.group_changed)
        self.taken = Taken(self.caches, self.fabrics, self.claims, self.promises)
        self._rng = rng
        self._resync = resync_seconds
        self._identity = identity
        self._rights = rights or Rights()
        for kind in ("PDService", "ScenarioGroup", "RoCEDomain"):
            self.metrics.workers.labels(kind).set(workers)

    def leave(self, left: Mapping[str, str]) -> None:
        """Leave these namespaces to other operators, by name; take back any other.

        The empty namespace stands for RoCEDomains.
        """
        changed = self.scope.leave(left)
        self.taken.everything_changed()
        for key in self.triggers.everything():
            if key.namespace in changed:
                self.queue.add(key)

    async def follow(self) -> None:
        """Keep the caches; runs on leader and standbys alike."""
        async with asyncio.TaskGroup() as tasks:
            for cache in self.caches:
                tasks.create_task(cache.run())
            await self._report_sync()

    async def act(
        self,
        make_engines: MakeEngines,
        source: MetricsSource,
        settings: LoopSettings,
        log_line: Callable[[str], None] = lambda _line: None,
    ) -> None:
        """Everything a leader does, until cancelled."""
        await self.caches.wait_synced()
        tokens = Tokens(self.client, secrets.token_bytes)
        engines = await make_engines(tokens)
        linker = Linker(engines, lambda key: self.queue.add(group_key(key)), self._not_linked)
        events = EventRecorder(
            self.client,
            Reporter(COMPONENT, self._identity),
            event_reasons.ALL,
            registry=self.registry,
        )
        context = OperatorContext(
            client=self.client,
            caches=self.caches,
            taken=self.taken,
            shapes=self.shapes,
            unsettled=self.unsettled,
            queue=self.queue,
            events=events,
            linker=linker,
            tokens=tokens,
            metrics=self.metrics,
            gateway_image=self._gateway_image,
            pod_settings=self._pod_settings,
            operator_namespace=self._operator_namespace,
            rights=self._rights,
            clock=self.clock,
            silence=self.silence,
            node_changes=self.node_changes,
            volumes=self.volumes,
            skips=self.skips,
            scope=self.scope,
            claims=self.claims,
            promises=self.promises,
        )
        await recall_claims(context)
        ratio = RatioLoop(context, source, settings, log_line)
        with self.skips.told_by(events), self._gauges.told(self.scope):
            await self._tasks(context, ratio)

    async def _tasks(self, context: OperatorContext, ratio: RatioLoop) -> None:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(context.linker.run())
            tasks.create_task(context.events.run())
            tasks.create_task(resync(context, self.triggers, self._resync, self._rng))
            tasks.create_task(ratio.run())
            tasks.create_task(self.silence.listen(self.client))
            tasks.create_task(work(context))

    def _not_linked(self, group: ObjectKey, pod: str, error: Exception) -> None:
        """An answer of an instance cannot be read: the instance stays unlinked."""
        obj = self.caches.pods.get(pod, group.namespace)
        if obj is not None:
            self.skips(obj, "link", error)

    def waiting_for(self) -> str:
        """What is not listed yet, with the reason; "" once everything is."""
        missing = [
            f"{cache.resource.plural} ({cache.state().error})"
            for cache in self.caches
            if not cache.synced.is_set()
        ]
        return f"not listed yet: {', '.join(missing)}" if missing else ""

    async def _report_sync(self) -> None:
        patience = FIRST_REPORT
        while not self.caches.synced:
            try:
                async with asyncio.timeout(patience):
                    await self.caches.wait_synced()
            except TimeoutError:
                log.warning("The API server does not answer as it should; %s", self.waiting_for())
            patience = WAITING_REPORT
        self.synced = True
        log.info("All caches are filled")
