"""The life of one container: start, probe, end, and start again as its policy says.

`pods` decides what a container is made of, when it may start and when it must end.
"""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localcluster.agent.backoff import RestartBackoff
from localcluster.agent.environment import ConfigError
from localcluster.agent.host import Host, log_event, monotonic, timestamp
from localcluster.agent.images import ImageError
from localcluster.agent.probes import ProbeSpec, ProbeTarget, ProbeVerdict
from localcluster.agent.sandbox import Launch, RunningContainer
from localcluster.agent.status import LocalContainer, RunningState, TerminatedState, WaitingState
from localcluster.agent.volumes import VolumeError
from localcluster.errors import LocalError
from pdserve.kube.errors import KubeError
from pdserve.terms.json import JsonMap

MIN_GRACE = 2.0
"""A kubelet lets these seconds pass between SIGTERM and SIGKILL whatever the grace period says."""
_OUTPUT_LIMIT = 4096
_MESSAGE_LIMIT = 4096
_MESSAGE_LOG_LINES, _MESSAGE_LOG_LIMIT = 80, 2048
_EPOCH = "1970-01-01T00:00:00Z"

MakeLaunch = Callable[[JsonMap, Path], Awaitable[Launch]]
"""Make everything a start of this container needs; its log goes to the file given.

Raises ConfigError, ImageError, VolumeError, LocalError or KubeError: all are tried again."""


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a container gets from its pod."""

    host: Host
    pod_name: str
    pod_uid: str
    address: Callable[[], str]
    """The pod's, which changes when its node was down."""
    up: asyncio.Event
    """Clear while the pod's node is down: nothing runs then."""
    restart_policy: str
    grace: float
    log_dir: Path
    launch: MakeLaunch
    changed: Callable[[], None]
    """Called after every change of `ContainerRunner.view`."""
    init: bool = False
    first_state: str = "ContainerCreating"
    """Reason to wait at the beginning."""


class ContainerRunner:
    """One container of one pod. `run` until it is final; `stop` from outside at any time."""

    def __init__(self, spec: JsonMap, around: Surroundings) -> None:
        self._spec = spec
        self._around = around
        self._backoff = RestartBackoff(around.host.settings.restart_base)
        self._stopping = asyncio.Event()
        self._ended_by_probe = False
        self._running: RunningContainer | None = None
        self._told = asyncio.Event()
        """The view says how the last run ended."""
        self._view = LocalContainer(
            str(spec["name"]), str(spec["image"]), WaitingState(around.first_state)
        )
        self._target = self._probe_target()

    @property
    def view(self) -> LocalContainer:
        """How it stands now."""
        return self._view

    @property
    def running(self) -> RunningContainer | None:
        """The process, while there is one."""
        return self._running

    def waiting(self, reason: str, message: str = "") -> None:
        """Say why it does not start yet."""
        self._show(state=WaitingState(reason, message))

    async def run(self) -> None:
        """Run until it ended and is not to be started again, or `stop` was called."""
        try:
            await self._run()
        finally:
            self._told.set()

    async def _run(self) -> None:
        for restarts in itertools.count():
            log = self._log(restarts)
            await self._around.up.wait()
            launch = await self._make_launch(log)
            if launch is None:
                return
            began = monotonic()
            self._ended_by_probe = False
            self._told.clear()
            ended = await self._once(launch, restarts)
            if not self._around.up.is_set():
                # The kubelet that finds it afterwards knows neither how it ended nor how often.
                ended = dataclasses.replace(ended, exit_code=255, reason="Unknown", message="")
                self._backoff = RestartBackoff(self._around.host.settings.restart_base)
            if self._stopping.is_set() or not self._again(ended.exit_code):
                self._show(state=ended, ready=False, started=False, final=True)
                return
            delay = 0.0
            if self._around.up.is_set():
                ran = monotonic() - began
                delay = self._backoff.after_run(ran, by_probe=self._ended_by_probe)
            if ended.reason == _START_ERROR:
                waits = WaitingState("RunContainerError", ended.message)
                self._show(state=waits, last=ended, restarts=restarts, ready=False, started=False)
            else:
                self._show(state=ended, ready=False, started=False)
            self._told.set()
            if delay:
                await self._back_off(ended, delay)
            if self._stopping.is_set():
                self._show(state=ended, ready=False, started=False, final=True)
                return

    async def stop(self, grace: float) -> None:
        """End it: preStop, SIGTERM, and when `grace` seconds are over SIGKILL.

        Returns when the view says how it ended.
        """
        self._stopping.set()
        running = self._running
        if running is not None:
            await self._end(running, grace)
            await self._told.wait()

    def lose_power(self) -> None:
        """Its node is down: it ends at once, and no status is reported."""
        if self._running is not None:
            self._running.kill()

    def _probe_target(self) -> ProbeTarget:
        address, session = self._around.address(), self._around.host.session
        return ProbeTarget(self._spec, address, session, self._run_inside)

    def _again(self, exit_code: int) -> bool:
        policy = self._around.restart_policy
        return policy == "Always" or (policy == "OnFailure" and exit_code != 0)

    async def _make_launch(self, log: Path) -> Launch | None:
        """Everything for a start; waits for what is missing. None: stopped meanwhile."""
        while not self._stopping.is_set():
            try:
                return await self._around.launch(self._spec, log)
            except ImageError as error:
                self.waiting(*_no_image(self._spec, str(error)))
            except (ConfigError, VolumeError, LocalError, KubeError) as error:
                self.waiting("CreateContainerConfigError", str(error))
            await self._pause(self._around.host.settings.retry)
        return None

    async def _once(self, launch: Launch, restarts: int) -> TerminatedState:
        """One run, from start to end."""
        container_id = f"process://{secrets.token_hex(32)}"
        started_at = timestamp()
        try:
            running = self._around.host.sandbox.start(launch)
        except OSError as error:
            return _not_started(f"cannot start: {error}", container_id)
        self._running = running
        try:
            return await self._attend(running, launch, restarts, started_at, container_id)
        except asyncio.CancelledError:
            running.kill()  # no record of it is kept
            raise
        finally:
            self._running = None

    async def _attend(
        self,
        running: RunningContainer,
        launch: Launch,
        restarts: int,
        started_at: str,
        container_id: str,
    ) -> TerminatedState:
        """Probes and hooks of one run, until it has ended."""
        self._target = self._probe_target()
        if not self._around.up.is_set():
            running.kill()
        if (problem := await running.not_started()) is not None:
            return _not_started(problem, container_id)
        last = (
            self._view.state if isinstance(self._view.state, TerminatedState) else self._view.last
        )
        now_runs = dataclasses.replace(
            self._view,
            state=RunningState(started_at, container_id),
            last=last,
            restarts=restarts,
            ready=False,
            started=False,
        )
        watch = asyncio.create_task(self._watch(running, now_runs))
        try:
            code = await running.wait()
        finally:
            watch.cancel()
            await asyncio.gather(watch, return_exceptions=True)
        # A run too short for anything else to be said of it still counts.
        self._view = dataclasses.replace(self._view, last=last, restarts=restarts)
        message = _last_word(self._spec, launch, code)
        return _terminated(code, started_at, container_id, message)

    async def _back_off(self, ended: TerminatedState, delay: float) -> None:
        namespace, _, pod = self._around.pod_name.partition("/")
        message = (
            f"back-off {go_duration(delay)} restarting failed container={self._view.name} "
            f"pod={pod}_{namespace}({self._around.pod_uid})"
        )
        self._show(state=WaitingState("CrashLoopBackOff", message), last=ended)
        await self._pause(delay)

    async def _watch(self, running: RunningContainer, now_runs: LocalContainer) -> None:
        """Hooks and probes of one run; startup before the others.

        Until postStart is done, however long that takes, the container is not reported as running:
        a kubelet does nothing else for the pod meanwhile.
        """
        hook = (self._spec.get("lifecycle") or {}).get("postStart")
        if hook:
            ok, said = await self._target.ask(hook, None)
            if not ok:
                await self._unhealthy(running, "postStart hook", said, self._around.grace)
                return
        ready = not self._spec.get("readinessProbe") and not self._around.init
        if self._spec.get("startupProbe"):
            self._set(now_runs)
            await self._probe("startupProbe", running)
            self._show(started=True, ready=ready)
        else:
            self._set(dataclasses.replace(now_runs, started=True, ready=ready))
        async with asyncio.TaskGroup() as tasks:
            for kind in ("livenessProbe", "readinessProbe"):
                if self._spec.get(kind):
                    tasks.create_task(self._probe(kind, running))

    async def _probe(self, kind: str, running: RunningContainer) -> None:
        """Ask until the run ends (a startup probe: until it succeeds) and act on verdicts."""
        spec = ProbeSpec.of(self._spec[kind])
        verdict = ProbeVerdict(spec)
        await asyncio.sleep(spec.initial_delay)
        while True:
            ok, said = await self._target.ask(spec.raw, spec.timeout)
            decided = verdict.add(ok)
            if kind == "readinessProbe":
                if decided is not None and decided is not self._view.ready:
                    self._show(ready=decided)
            elif decided is False and not self._stopping.is_set():
                grace = float(spec.raw.get("terminationGracePeriodSeconds") or self._around.grace)
                self._ended_by_probe = True
                await self._unhealthy(running, kind, said, grace)
            elif decided and kind == "startupProbe":
                return
            await asyncio.sleep(spec.period)

    async def _unhealthy(
        self, running: RunningContainer, what: str, said: str, grace: float
    ) -> None:
        log_event(
            "unhealthy", pod=self._around.pod_name, container=self._view.name, by=what, said=said
        )
        await self._end(running, grace)

    async def _end(self, running: RunningContainer, grace: float) -> None:
        deadline = monotonic() + grace
        hook = (self._spec.get("lifecycle") or {}).get("preStop")
        if hook and grace > 0:
            await self._pre_stop(running, hook, grace)
        running.terminate()
        try:
            async with asyncio.timeout(max(deadline - monotonic(), MIN_GRACE)):
                await running.wait()
        except TimeoutError:
            running.kill()
        await running.wait()

    async def _pre_stop(self, running: RunningContainer, hook: JsonMap, grace: float) -> None:
        """The hook, until it or the program ends."""
        if "sleep" in hook:
            asked = asyncio.create_task(asyncio.sleep(float(hook["sleep"]["seconds"])))
        else:
            asked = asyncio.create_task(self._log_hook(hook, grace))
        ended = asyncio.create_task(running.wait())
        await asyncio.wait({asked, ended}, timeout=grace, return_when=asyncio.FIRST_COMPLETED)
        for task in (asked, ended):
            task.cancel()
        await asyncio.gather(asked, ended, return_exceptions=True)

    async def _log_hook(self, hook: JsonMap, grace: float) -> None:
        ok, said = await self._target.ask(hook, grace)
        if not ok:
            log_event(
                "preStop failed", pod=self._around.pod_name, container=self._view.name, said=said
            )

    async def _run_inside(self, argv: list[str]) -> tuple[int, str]:
        running = self._running
        if running is None or running.pid is None:
            return 1, "the container is not running"
        process = await asyncio.create_subprocess_exec(
            *running.inside(argv),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(running.env),
        )
        try:
            output, _ = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
        text = output[-_OUTPUT_LIMIT:].decode("utf-8", "replace").strip()
        return process.returncode or 0, text

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _log(self, restarts: int) -> Path:
        """Log file of one run. Two more are kept: until it begins, they are the last two."""
        directory = self._around.log_dir / self._view.name
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"{restarts - 3}.log").unlink(missing_ok=True)
        return directory / f"{restarts}.log"

    def _show(self, **changes: Any) -> None:
        self._set(dataclasses.replace(self._view, **changes))

    def _set(self, view: LocalContainer) -> None:
        before, self._view = self._view, view
        if view != before:
            self._around.changed()


_START_ERROR = "StartError"


def _not_started(message: str, container_id: str) -> TerminatedState:
    return TerminatedState(128, _START_ERROR, _EPOCH, timestamp(), container_id, message)


def _terminated(code: int, started_at: str, container_id: str, message: str) -> TerminatedState:
    """`code` as a Popen gives it: negative for a signal."""
    exit_code = 128 - code if code < 0 else code
    reason = "Completed" if exit_code == 0 else "Error"
    return TerminatedState(exit_code, reason, started_at, timestamp(), container_id, message)


def _last_word(spec: JsonMap, launch: Launch, code: int) -> str:
    """What the program left as its termination message; else, if asked for, its log's end."""
    said = b""
    if launch.termination_log is not None and launch.termination_log.is_file():
        with launch.termination_log.open("rb") as file:
            said = file.read(_MESSAGE_LIMIT)
    if not said and code != 0 and spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
        tail = launch.log.read_bytes()[-_MESSAGE_LOG_LIMIT:]
        said = b"".join(tail.splitlines(keepends=True)[-_MESSAGE_LOG_LINES:])
    return said.decode("utf-8", "replace")


def _no_image(spec: JsonMap, said: str) -> tuple[str, str]:
    if spec.get("imagePullPolicy") == "Never":
        image = spec["image"]
        return (
            "ErrImageNeverPull",
            f'Container image "{image}" is not present with pull policy of Never: {said}',
        )
    return "ErrImagePull", said


def go_duration(seconds: float) -> str:
    """Seconds as Go prints a duration: `10s`, `2m40s`, `5m0s`."""
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}m{rest:g}s" if minutes else f"{rest:g}s"
