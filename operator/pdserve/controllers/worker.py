"""Takes keys from the queue and reconciles them.

Only here does a failure become a retry. A failing object never holds up another: its defect is
logged, counted and retried.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Final

from pdserve.controllers.domain.rocedomain import reconcile_domain
from pdserve.controllers.group.scenariogroup import reconcile_group
from pdserve.controllers.service.pdservice import reconcile_service
from pdserve.controllers.shared import refusals
from pdserve.controllers.shared.context import OperatorContext
from pdserve.controllers.shared.triggers import DOMAIN, GROUP, SERVICE, Triggers
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import ObjectKey
from pdserve.kube.workqueue import QueueKey

log = logging.getLogger(__name__)

Reconciler = Callable[[OperatorContext, ObjectKey], Awaitable[float | None]]

SHORTEST_WAIT: Final = 0.05
"""Seconds."""

TELL_AGAIN: Final = 60.0
"""Seconds."""

RECONCILERS: Final[Mapping[str, Reconciler]] = {
    SERVICE: reconcile_service,
    GROUP: reconcile_group,
    DOMAIN: reconcile_domain,
}


async def work(context: OperatorContext) -> None:
    """Reconcile keys until cancelled, each in a task of its own.

    The queue bounds how many keys of one namespace are in work; nothing bounds all of them
    together, so that no namespace waits for another's slow answers. Between two keys everything
    else of the event loop runs once.
    """
    async with asyncio.TaskGroup() as tasks:
        while True:
            key = await context.queue.get()
            task = tasks.create_task(reconcile(context, key))
            # Not inside the task: one that is cancelled before it began runs nothing of its own.
            task.add_done_callback(lambda _, key=key: context.queue.done(key))  # type: ignore[misc]  # a default argument
            await asyncio.sleep(0)


async def reconcile(context: OperatorContext, key: QueueKey) -> None:
    """Reconcile one key; failures become retries with backoff, refusals become conditions."""
    try:
        await _attempt(context, key)
    except Exception:
        # Telling failed as well; the other keys are worked on all the same.
        log.exception("%s: cannot tell what is wrong; again in %.1f s", key, TELL_AGAIN)
        context.queue.add_after(key, TELL_AGAIN)


async def _attempt(context: OperatorContext, key: QueueKey) -> None:
    clock = asyncio.get_running_loop().time
    started = clock()
    if context.scope.leaves(key.namespace):
        # Another operator looks after it, and after its instances' links.
        if key.kind == GROUP:
            context.linker.set_targets(ObjectKey(key.namespace, key.name), ())
        context.queue.forget(key)
        return
    try:
        after = await RECONCILERS[key.kind](context, ObjectKey(key.namespace, key.name))
    except refusals.InvalidObject as error:
        context.queue.forget(key)
        context.metrics.reconciled(key.kind, "error", clock() - started)
        await refusals.invalid(context, key, error)
        return
    except KubeError as error:
        delay = context.queue.retry(key)
        # A conflict only says that the view was old; the next look has a newer one.
        level = logging.INFO if error.is_conflict else logging.WARNING
        log.log(level, "%s: %s; again in %.1f s", key, error, delay)
        context.metrics.reconciled(key.kind, "error", clock() - started)
        if refusals.is_reported(error, context.queue.failures(key)):
            await refusals.refused(context, key, error)
        return
    except Exception as error:
        delay = context.queue.retry(key)
        log.warning("%s: reconciliation failed; again in %.1f s", key, delay)
        context.metrics.reconciled(key.kind, "error", clock() - started)
        await refusals.failed(context, key, error, "reconcile")
        return
    await refusals.went_well(context, key)
    context.queue.forget(key)
    # A deadline is over a moment after it, never a moment before: no busy loop on rounding.
    context.queue.look_again(key, None if after is None else max(after, SHORTEST_WAIT))
    context.metrics.reconciled(
        key.kind, "success" if after is None else "requeue", clock() - started
    )


async def resync(
    context: OperatorContext, triggers: Triggers, every: float, rng: random.Random
) -> None:
    """Look at everything now, and again every `every` seconds (jittered) until cancelled."""
    while True:
        for key in triggers.everything():
            context.queue.add(key)
        await asyncio.sleep(every * rng.uniform(0.8, 1.2))
        context.tokens.forget()
