"""The operator as a whole: caches and kopf always, everything that writes only while leading.

All tasks are in one TaskGroup: if one ends unexpectedly the process ends, and Kubernetes starts it
again. Standbys keep their caches up to date, so a fail-over needs no list.

    always:  caches, then kopf; health and metrics server, leader election
    waiting: while the objects are another operator's (`kube.claim`): nothing is written
    leading: reconcilers, linker, resync, ratio loop, event recorder
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import signal
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Final

import aiohttp

from pdserve.controllers.core import COMPONENT, Core
from pdserve.controllers.from_options import decision_log, loop_settings, make_claim, metrics_source
from pdserve.controllers.kopf_app import run_kopf
from pdserve.controllers.options import OperatorOptions
from pdserve.controllers.shared.instance_calls import EngineApi, HttpEngines
from pdserve.controllers.shared.tokens import Tokens
from pdserve.engines.pod_parts import PodSettings
from pdserve.exposition import Registry
from pdserve.http1.pages import health_pages, page_server
from pdserve.kube.claim import ClaimedError, ScopeClaim
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import connect
from pdserve.kube.lease import LeaseElector
from pdserve.kube.lease_thread import LeaseThread

log = logging.getLogger(__name__)

ENV_POD_UID: Final = "POD_UID"
"""Set by the chart: a container that is restarted in place keeps its predecessor's Lease."""
KOPF_AGAIN: Final = 10.0
"""Seconds until kopf is started again after it failed."""


class Stopped(Exception):  # noqa: N818 - a clean end, used to end the TaskGroup
    """A signal told this process to stop."""


async def run(options: OperatorOptions) -> None:
    """Run the operator until a signal ends it.

    Raises:
        ConnectError: there is no usable configuration of a cluster.
    """
    if options.kubeconfig:
        # kopf keeps its own connection and reads the same file.
        os.environ["KUBECONFIG"] = options.kubeconfig
    registry = Registry()
    # Spreads timers over time; nothing secret depends on it.
    rng = random.Random()  # noqa: S311 - jitter and schedules, no secrets
    identity = os.environ.get("HOSTNAME", COMPONENT)
    client = await connect(
        options.kubeconfig,
        registry=registry,
        rate=options.api_rate,
        burst=options.api_burst,
        user_agent=COMPONENT,
    )
    core = Core(
        client,
        namespace=options.namespace,
        gateway_image=options.gateway_image,
        operator_namespace=options.lease_namespace,
        registry=registry,
        now=time.time,
        rng=rng,
        workers=options.workers,
        resync_seconds=options.resync,
        identity=identity,
        rights=options.rights,
        pod_settings=PodSettings(
            options.gateway_image, options.model_cache, options.model_cache_namespaces
        ),
    )
    claim = make_claim(client, options, core.leave)
    pages = health_pages(registry, ready=lambda: core.waiting_for() or claim.waiting)
    server = page_server(pages)
    await server.start(options.bind, options.metrics_port)
    log.info("Operator %s starts; health and metrics on port %d", identity, options.metrics_port)
    try:
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(core.follow())
            tasks.create_task(watch_with_kopf(core, options.namespace, rng))
            tasks.create_task(_until_signalled())
            tasks.create_task(_lead(core, claim, options, identity))
    except* Stopped:
        log.info("Stopped")
    finally:
        await server.stop(grace=0.0)
        await client.close()


async def watch_with_kopf(core: Core, namespace: str | None, rng: random.Random) -> None:
    """Run kopf once the caches are full, and again KOPF_AGAIN seconds after it ended."""
    # kopf reports as errors what the caches wait for: no API server yet, kinds just installed.
    await core.caches.wait_synced()
    # What is held now stays: looking through it for garbage again and again holds everything up
    # for as long (0.2 s at 1,000 nodes).
    gc.freeze()
    while True:
        try:
            await run_kopf(core.queue, namespace, rng)
        except Exception:
            # The caches see the same changes; only kopf has no bound on what it reads.
            log.exception("kopf ended; it is started again in %.0f s", KOPF_AGAIN)
        await asyncio.sleep(KOPF_AGAIN)


async def _until_signalled() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
    log.info("Told to stop")
    raise Stopped


async def _lead(core: Core, claim: ScopeClaim, options: OperatorOptions, identity: str) -> None:
    async def act() -> None:
        async with AsyncExitStack() as stack:
            session = await stack.enter_async_context(
                # The linker bounds requests, per namespace; no instance sets cookies for another.
                aiohttp.ClientSession(
                    connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar()
                )
            )
            source = metrics_source(options)
            stack.push_async_callback(source.close)

            async def engines(tokens: Tokens) -> EngineApi:
                return HttpEngines(session, tokens.get)

            await core.act(engines, source, loop_settings(options), decision_log(options))

    if not options.leader_election:
        await act()
        return

    def elector(client: KubeClient, alive: Callable[[], bool]) -> LeaseElector:
        return LeaseElector(
            client,
            options.lease_namespace,
            options.lease_name,
            identity,
            incarnation=os.environ.get(ENV_POD_UID, ""),
            alive=alive,
            registry=core.registry,
        )

    async def own_connection() -> KubeClient:
        return await connect(options.kubeconfig, user_agent=COMPONENT)

    async def lead() -> None:
        await claim.take()
        async with asyncio.TaskGroup() as tasks:
            keeper = tasks.create_task(claim.keep())
            await act()
            keeper.cancel()

    while True:
        await claim.wait_free()
        try:
            await LeaseThread(own_connection, elector).run(lead)
        except ClaimedError as error:
            log.warning("%s", error)
        else:
            return
