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
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Protocol
from weakref import WeakValueDictionary

import aiohttp

from pdserve.desired.service_credentials import (
    BadSecret,
    ServiceCredentials,
    Terms,
    control_tokens,
    grant_of,
)
from pdserve.engines import registry as engine_types
from pdserve.engines.control import ControlRequest, EngineControl
from pdserve.engines.registry import EngineTypeError
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import ObjectKey
from pdserve.wire.bounds import MAX_BYTES
from pdserve.wire.links import DrainReport, LinkReport
from pdserve.wire.peers import PeerTable

log = logging.getLogger(__name__)

MOST_REMEMBERED = 16_384
"""Containers whose working token is remembered; forgetting costs a request each."""
LEAST_BETWEEN = 0.05
"""Seconds between questions to two watched instances, however many there are."""


@dataclass(frozen=True, slots=True)
class Target:
    """One running instance and what it needs: its leader answers for all of its members. Another
    member, `instance` being its pod's name, is given tables where its engine takes them.

    `table` is the newest peer table, when it names the instance; `poll` asks for link reports
    again and again (something in its group is being linked); `watch` asks now and then; `drain`
    asks it to drain. `terms` are of the grant that goes with the table; None: the instance reads
    none.
    """

    instance: str
    container_id: str
    endpoint: str
    service: str
    engine: str
    """Its engine type."""
    table: PeerTable | None = None
    poll: bool = False
    drain: bool = False
    watch: bool = False
    terms: Terms | None = None


class EngineApi(Protocol):
    """What an instance answers on its control paths."""

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        """Give it a peer table (a version it already has is fine), and a grant by its terms."""
        ...

    async def get_links(self, target: Target) -> LinkReport:
        """Its link report."""
        ...

    async def post_drain(self, target: Target) -> DrainReport:
        """Start, or ask after, its drain."""
        ...


class EngineError(Exception):
    """An instance did not answer, or not as agreed."""


class HttpEngines:
    """`EngineApi` over HTTP with the service's control credentials."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        credentials: Callable[[str], Awaitable[ServiceCredentials]],
        timeout: float = 2.0,
    ) -> None:
        """`credentials` gives those of a service key `namespace/name`; `timeout` in seconds."""
        self._session = session
        self._credentials = credentials
        self._works: dict[str, str] = {}
        """The token that a container last took, by container id."""
        self._timeout = aiohttp.ClientTimeout(total=timeout)

    async def put_peers(self, target: Target, table: PeerTable) -> None:
        """See EngineApi. An instance that holds a newer table keeps it: its report says so."""
        control = _control(target)
        body = table.to_json()
        if target.terms is not None:
            held = await self._held(target, "PUT peers")
            namespace = target.service.partition("/")[0]
            grant = grant_of(held, namespace, target.instance, table, target.terms)
            body["credentials"] = grant.to_json()
        await self._call(target, control.put_peers(body))

    async def get_links(self, target: Target) -> LinkReport:
        """See EngineApi."""
        control = _control(target)
        return control.read_links(await self._call(target, control.get_links()))

    async def post_drain(self, target: Target) -> DrainReport:
        """See EngineApi."""
        control = _control(target)
        return control.read_drain(await self._call(target, control.post_drain()))

    async def _call(self, target: Target, request: ControlRequest) -> bytes:
        what = f"{request.method} {request.path}"
        held = await self._held(target, what)
        known = self._works.get(target.container_id)
        tokens = control_tokens(held, target.service.partition("/")[0], target.instance)
        answer = None
        for token in sorted(tokens, key=lambda t: t != known):
            answer = await self._ask(target, request, token)
            if answer[0] != HTTPStatus.UNAUTHORIZED:
                self._remember(target.container_id, token)
                break
        status, raw = answer or (HTTPStatus.UNAUTHORIZED, b"")
        if status not in request.accepts:
            raise EngineError(f"{what}: HTTP {status}: {raw[:200].decode('utf-8', 'replace')}")
        return raw

    async def _held(self, target: Target, what: str) -> ServiceCredentials:
        try:
            return await self._credentials(target.service)
        except (KubeError, BadSecret) as error:
            # The service may be on its way out, its Secret first.
            raise EngineError(f"{what}: no credentials: {error}") from error

    def _remember(self, container_id: str, token: str) -> None:
        if len(self._works) >= MOST_REMEMBERED:
            self._works.clear()
        self._works[container_id] = token

    async def _ask(self, target: Target, request: ControlRequest, token: str) -> tuple[int, bytes]:
        headers = {"Authorization": f"Bearer {token}", "Accept-Encoding": "identity"}
        sent = self._session.request(
            request.method, target.endpoint + request.path, json=request.body, headers=headers,
            timeout=self._timeout, allow_redirects=False, auto_decompress=False,
        )  # fmt: skip
        try:
            async with sent as reply:
                return reply.status, await _bounded(reply)
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            what = f"{request.method} {request.path}"
            raise EngineError(f"{what}: {type(error).__name__}: {error}") from error


def _control(target: Target) -> EngineControl:
    try:
        return engine_types.control(target.engine)
    except EngineTypeError as error:
        raise EngineError(str(error)) from error


async def _bounded(reply: aiohttp.ClientResponse) -> bytes:
    """At most one byte more than an answer may have; its charset and type do not matter.

    Raises ValueError for a body in another encoding than was asked for.
    """
    encoding = reply.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity"):
        raise ValueError(f"the answer is encoded as {encoding[:40]!r}, and nothing was accepted")
    body = b""
    while len(body) <= MAX_BYTES and (part := await reply.content.read(MAX_BYTES + 1 - len(body))):
        body += part
    return body


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
            if state is not None and state.target.container_id != target.container_id:
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


def _cancel(state: _State) -> None:
    if state.task is not None:
        state.task.cancel()
