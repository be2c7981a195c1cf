"""kopf's part: it watches our three kinds and queues the keys of changed objects. Nothing more.

Handlers only enqueue a key: no finalizers, no annotations, no timers, no return values (kopf
would write those into status). kopf misses a deletion that happens during a re-list. The caches see
it and feed the same queue, which merges equal keys.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import kopf

from pdserve.controllers.kopf_session import session_of
from pdserve.controllers.shared.triggers import DOMAIN, GROUP, SERVICE
from pdserve.kube.workqueue import QueueKey, WorkQueue
from pdserve.wire import names

CHUNK: Final = 500
EXIT_SECONDS: Final = 10.0
LOGIN_AGAIN: Final = 1.0
"""Seconds before credentials are read again."""
_KINDS = {"pdservices": SERVICE, "scenariogroups": GROUP, "rocedomains": DOMAIN}
_CAP = 30.0


class Backoffs:
    """Delays without end: kopf would otherwise end the process when the API server is away.

    Doubling from 0.5 s to 30 s, spread by +-30 %. Iterated anew for every request.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def __iter__(self) -> Iterator[float]:
        delay = 0.5
        while True:
            yield delay * self._rng.uniform(0.7, 1.3)
            delay = min(2 * delay, _CAP)


def make_settings(rng: random.Random) -> kopf.OperatorSettings:
    """Kopf as a plain watcher of our kinds."""
    settings = kopf.OperatorSettings()
    settings.peering.standalone = True
    settings.scanning.disabled = True
    settings.posting.enabled = False
    settings.posting.loggers = False
    settings.networking.error_backoffs = Backoffs(rng)
    settings.networking.request_timeout = 30.0
    settings.networking.connect_timeout = 10.0
    settings.watching.chunk_size = CHUNK
    settings.persistence.finalizer = f"{names.GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(
        prefix=f"kopf.{names.GROUP}", v1=False
    )
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(
        prefix=f"kopf.{names.GROUP}", v1=False
    )
    # kopf would kill this process, and with it everything else that it does.
    settings.process.ultimate_exiting_timeout = None
    return settings


def make_registry(wake: Callable[[QueueKey], None]) -> kopf.OperatorRegistry:
    """Handlers of our kinds, which tell `wake` what to look at."""
    registry = kopf.OperatorRegistry()

    async def seen(resource: kopf.Resource, name: str, namespace: str | None, **_: object) -> None:
        wake(QueueKey(_KINDS[resource.plural], namespace or "", name))

    for plural in _KINDS:
        kopf.on.event(names.GROUP, names.VERSION, plural, registry=registry, id="seen")(seen)
    kopf.on.login(registry=registry, id="login")(_make_login())
    return registry


async def run_kopf(queue: WorkQueue, namespace: str | None, rng: random.Random) -> None:
    """Watch until cancelled.

    kopf gets a thread and an event loop of its own: on its way out it cancels every task of its
    loop that is younger than itself, and ours have a Lease to release.

    Raises:
        RuntimeError: kopf ended by itself.
    """
    loop, its_loop = asyncio.get_running_loop(), asyncio.new_event_loop()
    # A flag of kopf's own loop. For one of threads kopf keeps a thread waiting, and on its way out
    # after a failure it would wait for that thread.
    stop = asyncio.Event()

    def watch() -> None:
        try:
            kopf.run(
                loop=its_loop,
                registry=make_registry(lambda key: _hand_over(loop, queue, key)),
                settings=make_settings(rng),
                standalone=True,
                # Else kopf asks for this user's name, which a container's user need not have.
                identity=names.FIELD_MANAGER,  # type: ignore[arg-type]  # a str by another name
                clusterwide=namespace is None,
                namespaces=() if namespace is None else (namespace,),
                stop_flag=stop,
            )
        finally:
            its_loop.close()

    thread = loop.run_in_executor(None, watch)
    try:
        await asyncio.shield(thread)
        raise RuntimeError("kopf ended without being stopped")
    finally:
        with suppress(RuntimeError):  # its loop ended before
            its_loop.call_soon_threadsafe(stop.set)
        await asyncio.wait((thread,), timeout=EXIT_SECONDS)


def _hand_over(loop: asyncio.AbstractEventLoop, queue: WorkQueue, key: QueueKey) -> None:
    loop.call_soon_threadsafe(queue.add, key)


def _make_login() -> Callable[..., Awaitable[kopf.AiohttpSession | None]]:
    """Credentials as a session that reads nothing nested too deeply.

    kopf asks again when they are refused, and would give up when it knew them from before; a
    session is always new to it, so there is a pause.
    """
    asked = False

    async def login(**given: Any) -> kopf.AiohttpSession | None:
        nonlocal asked
        if asked:
            await asyncio.sleep(LOGIN_AGAIN)
        asked = True
        info = await asyncio.to_thread(_credentials, **given)
        return None if info is None else session_of(info)

    return login


def _credentials(**given: Any) -> kopf.ConnectionInfo | None:
    """The same order as `kube.connect`: $KUBECONFIG, the pod's service account, ~/.kube/config.

    kopf reads plain kubeconfigs itself; exec plugins and the like need the official client.
    """
    if os.environ.get("KUBECONFIG"):
        info = kopf.login_with_kubeconfig(**given)
        if info is not None and any(
            (info.token, info.username, info.certificate_path, info.certificate_data)
        ):
            return info
    return kopf.login_via_client(**given)
