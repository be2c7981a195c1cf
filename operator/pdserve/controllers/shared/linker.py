"""Talks to instances about their links: pushes peer tables, reads link reports, drains.

The ScenarioGroup reconciler sets, level-triggered, which instances to attend to and how
(`set_targets`). This module keeps one task per instance that needs something, remembers the last
report of each container, and wakes the reconciler when a report changes. Instances that need
nothing cost nothing, but for a question a minute to each decode that serves: whether KV arrives
corrupt there. Reports are keyed by container id, so a report of an
earlier process is never taken for one of the present process. If the memory is lost (operator
restart), each instance gets one idempotent push and one read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from pdserve.controllers.shared.instance_calls import EngineApi, EngineError, Target
from pdserve.desired.service_credentials import Terms
from pdserve.kube.resource import ObjectKey
from pdserve.wire.links import DrainReport, LinkReport

log = logging.getLogger(__name__)

LEAST_BETWEEN = 0.05
"""Seconds between questions to two watched instances, however many there are."""


@dataclass(slots=True)
class _State:
    target: Target
    links: LinkReport | None = None
    drain: DrainReport | None = None
    pushed: int = 0
    granted: Terms | None = None
    """Of the grant that went with the newest push."""
    failures: int = 0
    look: bool = False
    """It is to be asked once."""
    task: asyncio.Task[None] | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def needs_attention(self) -> bool:
        target = self.target
        if self.table_is_old:
            return True
        if target.drain:
            return self.drain is None or not self.drain.idle
        return target.poll or self.look or (target.table is not None and self.links is None)

    @property
    def table_is_old(self) -> bool:
        """It has not been given the newest table, or not by the present terms."""
        table, terms = self.target.table, self.target.terms
        return table is not None and (
            self.pushed < table.version or (terms is not None and self.granted != terms)
        )


class Linker:
    """Attends the instances of all ScenarioGroups.

    Use as an async context manager; tasks live inside it. `on_change(key)` is called with the
    ScenarioGroup's key whenever a report of one of its instances changed.
    """

    def __init__(
        self,
        engines: EngineApi,
        on_change: Callable[[ObjectKey], None],
        on_error: Callable[[ObjectKey, str, Exception], None] = lambda *_about: None,
        *,
        period: float = 0.25,
        max_period: float = 5.0,
        concurrency: int = 16,
        watch_period: float = 60.0,
    ) -> None:
        """Nothing runs until `run`.

        Args:
            engines: how to reach instances.
            on_change: called with the ScenarioGroup's key when a report changed.
            on_error: `on_error(key, instance, error)`: an answer cannot be read.
            period: seconds between two polls of one instance, doubled per failure.
            max_period: the longest such time.
            concurrency: requests under way at once per namespace, so that silent
                instances of one hold up no other's.
            watch_period: seconds in which each watched instance is asked once.
        """
        self._engines = engines
        self._on_change = on_change
        self._on_error = on_error
        self._period = period
        self._max_period = max_period
        self._concurrency = concurrency
        self._watch_period = watch_period
        self._slots: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """By namespace; the tasks that attend its instances hold it."""
        self._states: dict[ObjectKey, dict[str, _State]] = {}
        self._tasks: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Attend targets until cancelled. What fails for one is tried again, for that one."""
        try:
            async with asyncio.TaskGroup() as tasks:
                self._tasks = tasks
                for key, states in self._states.items():
                    for state in states.values():
                        self._attend(key, state)
                while True:
                    await self._watch()
        finally:
            self._tasks = None

    def set_targets(self, key: ObjectKey, targets: Iterable[Target]) -> None:
        """Replace what one ScenarioGroup wants attended; an empty set forgets it."""
        old = self._states.get(key, {})
        new: dict[str, _State] = {}
        for target in targets:
            state = old.pop(target.instance, None)
            if state is not None and _is_another(state.target, target):
                _cancel(state)
                state = None
            if state is None:
                state = _State(target)
            elif state.target != target:
                state.target = target
                state.failures = 0
                state.changed.set()
            new[target.instance] = state
        for state in old.values():
            _cancel(state)
        if new:
            self._states[key] = new
        else:
            self._states.pop(key, None)
        for state in new.values():
            self._attend(key, state)

    def links(self, key: ObjectKey) -> Mapping[str, LinkReport]:
        """Newest link report per instance, only of containers that run now."""
        return {i: s.links for i, s in self._states.get(key, {}).items() if s.links is not None}

    def drains(self, key: ObjectKey) -> Mapping[str, DrainReport]:
        """Newest drain report per instance."""
        return {i: s.drain for i, s in self._states.get(key, {}).items() if s.drain is not None}

    @property
    def attended(self) -> int:
        """Instances that have a task now: 0 when everything is settled."""
        return sum(
            s.task is not None and not s.task.done()
            for states in self._states.values()
            for s in states.values()
        )

    async def _watch(self) -> None:
        """Ask each watched instance once, spread over the period."""
        watched = [
            (key, state)
            for key, states in self._states.items()
            for state in states.values()
            if state.target.watch
        ]
        for key, state in watched:
            await asyncio.sleep(max(self._watch_period / len(watched), LEAST_BETWEEN))
            if self._states.get(key, {}).get(state.target.instance) is state:
                state.look = True
                self._attend(key, state)
        if not watched:
            await asyncio.sleep(self._watch_period)

    def _attend(self, key: ObjectKey, state: _State) -> None:
        running = state.task is not None and not state.task.done()
        if self._tasks is not None and not running and state.needs_attention:
            state.task = self._tasks.create_task(self._serve(key, state))

    async def _serve(self, key: ObjectKey, state: _State) -> None:
        slots = self._slots.setdefault(key.namespace, asyncio.Semaphore(self._concurrency))
        while state.needs_attention:
            state.changed.clear()
            try:
                async with slots:
                    changed = await self._step(state)
                state.failures = 0
                if changed:
                    self._on_change(key)
            except EngineError as error:
                state.failures += 1
                log.log(
                    logging.WARNING if state.failures == 5 else logging.DEBUG,
                    "instance %s/%s does not answer the operator: %s",
                    key.namespace, state.target.instance, error,
                )  # fmt: skip
            except Exception as error:
                state.failures += 1
                self._on_error(key, state.target.instance, error)
            await self._pause(state)

    async def _step(self, state: _State) -> bool:
        """One round of requests; True if a report changed.

        A draining instance takes new tables too: it keeps its entry while it serves KV reads, and
        a newcomer becomes ready only when every instance in its table knows it.
        """
        target, state.look = state.target, False
        changed = False
        if target.drain:
            drain = await self._engines.post_drain(target)
            changed, state.drain = drain != state.drain, drain
        push = target.table is not None and state.table_is_old
        if target.table is not None and push:
            await self._engines.put_peers(target, target.table)
            state.pushed, state.granted = target.table.version, target.terms
        if target.drain and not (push and target.terms is not None):
            return changed
        links = await self._engines.get_links(target)
        changed, state.links = changed or links != state.links, links
        terms = target.terms
        if terms is not None and links.credentials and links.grant != terms.revision:
            # It started anew, or another operator's push came in between.
            state.granted = None
        return changed

    async def _pause(self, state: _State) -> None:
        delay = min(self._period * 2.0 ** min(state.failures, 10), self._max_period)
        try:
            async with asyncio.timeout(delay):
                await state.changed.wait()
        except TimeoutError:
            return


def _is_another(before: Target, now: Target) -> bool:
    """Whether nothing that was said before the change is true of it now."""
    return (before.container_id, before.role) != (now.container_id, now.role)


def _cancel(state: _State) -> None:
    if state.task is not None:
        state.task.cancel()
