"""One pod on one process node, from its binding to its end.

1. Admit: assign an address and devices, or fail the pod as a kubelet would.
2. Make its volumes, waiting for what is missing.
3. Run init containers one after the other, then all containers at once.
4. When it is deleted, or its `activeDeadlineSeconds` are over: stop the containers within the
   grace period.
5. When it is deleted: send the last status, and delete the object for good.

The status is sent whenever it differs from the last one sent. While the node is cut off nothing is
sent and deletion waits, but containers go on.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import shutil
from pathlib import Path
from typing import Any

from localcluster.agent import images
from localcluster.agent.containers import ContainerRunner, Surroundings
from localcluster.agent.devices import NoDevices
from localcluster.agent.environment import PodFacts, build_argv, build_env, env_sources
from localcluster.agent.fields import DEFAULT_GRACE, grace_seconds
from localcluster.agent.host import Host, log_event, timestamp
from localcluster.agent.mounts import container_mounts
from localcluster.agent.nodes import ProcessNode
from localcluster.agent.objects import PodObjects
from localcluster.agent.sandbox import Launch
from localcluster.agent.status import LocalPod, WaitingState, pod_status
from localcluster.agent.volumes import (
    VolumeError,
    VolumeInputs,
    volume_sources,
    volume_tokens,
    write_volumes,
)
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import PODS, Object, version_of
from pdserve.terms.json import JsonMap

DEADLINE_EXCEEDED = (
    "DeadlineExceeded",
    "Pod was active on the node longer than the specified deadline",
)


class PodWorker:
    """Runs one pod. `run` ends when nothing of the pod is left on this machine."""

    def __init__(self, pod: Object, node: ProcessNode, host: Host) -> None:
        self.pod = pod
        self._node = node
        self._host = host
        self._uid = str(pod["metadata"]["uid"])
        self._directory = host.directory / self._uid
        self._objects = PodObjects(host.client, pod)
        self._start_time = timestamp()
        self._rejected: tuple[str, str] | None = None
        self._failed: tuple[str, str] | None = None
        self._volumes_made = False
        self._ip = ""
        self._devices: dict[str, list[int]] = {}
        self._init: list[ContainerRunner] = []
        self._main: list[ContainerRunner] = []
        self._changed = asyncio.Event()
        self._deleted = asyncio.Event()
        self._hurry = asyncio.Event()
        self._up = asyncio.Event()
        self._up.set()
        self._gone = False
        self._sent: JsonMap | None = None

    # --- from outside ------------------------------------------------------------------------

    @property
    def name(self) -> str:
        """`namespace/name`."""
        meta = self.pod["metadata"]
        return f"{meta['namespace']}/{meta['name']}"

    @property
    def node(self) -> ProcessNode:
        """Where it runs."""
        return self._node

    @property
    def log_dir(self) -> Path:
        """A directory per container, a file per run."""
        meta = self.pod["metadata"]
        return self._host.logs / f"{meta['namespace']}_{meta['name']}_{self._uid}"

    def containers(self) -> list[ContainerRunner]:
        """All its containers, init containers first."""
        return [*self._init, *self._main]

    def update(self, pod: Object) -> None:
        """A newer version of the object was seen."""
        if version_of(pod) < version_of(self.pod):
            return
        self.pod = pod
        self._changed.set()
        if pod["metadata"].get("deletionTimestamp"):
            self._deleted.set()
            self._hurry.set()

    def removed(self) -> None:
        """The object is gone (force-deleted): end at once, without a status."""
        self._gone = True
        self._deleted.set()
        self._hurry.set()

    def lose_power(self) -> None:
        """Its node went down: containers are gone, and so is what they shared but the volumes."""
        self._up.clear()
        self._volumes_made = False
        for runner in self.containers():
            runner.lose_power()

    async def regain_power(self) -> None:
        """Its node is back: containers start again as their policy says, at a new address."""
        if self._up.is_set():
            return
        if self._main and all(runner.view.final for runner in self._main):
            self._changed.set()
            return
        if self._ip and self._ip != self._node.ip:
            self._node.addresses.give_back(self._ip)
            self._ip = self._node.addresses.take() or self._ip
        self._changed.set()
        await self._make_volumes()
        self._up.set()

    # --- life --------------------------------------------------------------------------------

    async def run(self) -> None:
        """The phases above."""
        reporter = asyncio.create_task(self._report())
        life = asyncio.create_task(self._live())
        life.add_done_callback(self._died)
        refresher = asyncio.create_task(self._refresh_volumes())
        deadline = asyncio.create_task(self._end_at_deadline())
        self.update(self.pod)
        try:
            await self._deleted.wait()
            await self._node_reachable()
            await self._stop()
            await _cancelled(life, refresher, deadline)
            await self._finish(reporter)
        finally:
            await _cancelled(life, refresher, deadline, reporter)
            self._node.devices.give_back(self._uid)
            if self._ip and self._ip != self._node.ip:
                self._node.addresses.give_back(self._ip)
            shutil.rmtree(self._directory, ignore_errors=True)

    def _died(self, life: asyncio.Task[None]) -> None:
        """A defect of this agent must be visible on the pod, not only in a log."""
        if not life.cancelled() and (error := life.exception()) is not None:
            log_event("pod worker failed", pod=self.name, error=repr(error))
            self._rejected = ("NodeAgentError", repr(error))
            self._changed.set()

    async def _live(self) -> None:
        await self._node.connected.wait()
        if not self._admit():
            self._changed.set()
            return
        spec = self.pod["spec"]
        around = self._surroundings()
        init_policy = "OnFailure" if around.restart_policy == "Always" else around.restart_policy
        init_around = dataclasses.replace(around, restart_policy=init_policy, init=True)
        self._init = [ContainerRunner(c, init_around) for c in spec.get("initContainers") or ()]
        self._main = [ContainerRunner(c, around) for c in spec["containers"]]
        self._changed.set()
        await self._make_volumes()
        for runner in self._init:
            await runner.run()
            state = runner.view.state
            if getattr(state, "exit_code", 1) != 0:
                return
        await asyncio.gather(*(runner.run() for runner in self._main))

    def _admit(self) -> bool:
        spec = self.pod["spec"]
        try:
            self._devices = self._node.devices.take(self.pod)
        except NoDevices as error:
            self._rejected = ("UnexpectedAdmissionError", str(error))
            return False
        for container in spec.get("initContainers") or ():
            if container.get("restartPolicy") == "Always":
                message = f"init container {container['name']}: process nodes have no sidecars"
                self._rejected = ("UnsupportedPod", message)
                return False
        address = self._node.ip if spec.get("hostNetwork") else self._node.addresses.take()
        if address is None:
            self._rejected = ("OutOfpods", f"node {self._node.name} has no pod address left")
            return False
        self._ip = address
        return True

    async def _stop(self) -> None:
        """End all containers; sooner when meanwhile the pod is deleted with a shorter grace."""
        stops: set[asyncio.Task[Any]] = set()
        grace = math.inf
        try:
            while True:
                self._hurry.clear()
                if self._grace() < grace:
                    grace = self._grace()
                    stops |= {asyncio.create_task(r.stop(grace)) for r in self.containers()}
                busy = {stop for stop in stops if not stop.done()}
                if not busy:
                    return
                hurry = asyncio.create_task(self._hurry.wait())
                await asyncio.wait({hurry, *busy}, return_when=asyncio.FIRST_COMPLETED)
                hurry.cancel()
        finally:
            await _cancelled(*stops)

    async def _end_at_deadline(self) -> None:
        seconds = self.pod["spec"].get("activeDeadlineSeconds")
        if seconds is None:
            return
        await asyncio.sleep(float(seconds))
        if all(runner.view.final for runner in self._main) and self._main:
            return
        self._failed = DEADLINE_EXCEEDED
        self._changed.set()
        await self._stop()

    async def _finish(self, reporter: asyncio.Task[None]) -> None:
        """Send the last status and remove the object, as the kubelet's last word."""
        await _cancelled(reporter)
        meta = self.pod["metadata"]
        while not self._gone:
            await self._node_reachable()
            try:
                await self._send_status()
                await self._host.client.delete(
                    PODS, meta["name"], namespace=meta["namespace"], uid=self._uid, grace=0
                )
                return
            except KubeError as error:
                if error.is_not_found or error.is_conflict:
                    return
                log_event("cannot delete pod", pod=self.name, error=str(error))
                await asyncio.sleep(self._host.settings.retry)

    def _grace(self) -> float:
        return 0.0 if self._gone else grace_seconds(self.pod)

    async def _node_reachable(self) -> None:
        """Wait out a cut of the node, unless the object is gone anyway."""
        if not self._gone:
            await self._node.connected.wait()

    # --- what containers are made of -----------------------------------------------------------

    def _surroundings(self) -> Surroundings:
        spec = self.pod["spec"]
        grace = spec.get("terminationGracePeriodSeconds")
        return Surroundings(
            host=self._host,
            pod_name=self.name,
            pod_uid=self._uid,
            address=lambda: self._ip,
            up=self._up,
            restart_policy=spec.get("restartPolicy") or "Always",
            grace=DEFAULT_GRACE if grace is None else float(grace),
            log_dir=self.log_dir,
            launch=self._launch,
            changed=self._changed.set,
            first_state="PodInitializing" if spec.get("initContainers") else "ContainerCreating",
        )

    def _facts(self) -> PodFacts:
        return PodFacts(self.pod, self._ip, self._node.ip, self._node.allocatable)

    async def _launch(self, container: JsonMap, log: Path) -> Launch:
        image = container["image"]
        # In a thread: the first Prometheus of this machine may have to be built.
        program = await asyncio.to_thread(images.program, image, self._host.prometheus, self._ip)
        sources = await self._objects.sources(env_sources(container))
        given = {**self._host.image_env(self.pod["metadata"]["name"]), **program.env}
        given |= self._node.devices.env(self._devices.get(container["name"], []))
        env = build_env(container, self._facts(), sources, self._host.service_env())
        name = container["name"]
        sees = container_mounts(
            container,
            self.pod,
            self._directory / "mounts" / name,
            self._directory / "volumes",
            env,
            program.folders,
        )
        argv = build_argv(container, program.entrypoint, env)
        return Launch(
            argv=[program.programs.get(argv[0], argv[0]), *argv[1:]],
            env={**given, **env},
            workdir=sees.workdir,
            mounts=sees.mounts,
            directory=self._directory / "containers" / name,
            log=log,
            termination_log=sees.termination_log,
        )

    async def _make_volumes(self) -> None:
        """Make them, waiting for what is missing."""
        while True:
            try:
                await self._write_volumes()
                self._volumes_made = True
                self._changed.set()
                return
            except (VolumeError, KubeError) as error:
                for runner in self.containers():
                    # One that already ran says how it ended instead.
                    if isinstance(runner.view.state, WaitingState):
                        runner.waiting(runner.view.state.reason, str(error))
                await asyncio.sleep(self._host.settings.retry)

    async def _write_volumes(self) -> None:
        inputs = VolumeInputs(
            self._facts(),
            await self._objects.sources(volume_sources(self.pod)),
            await self._objects.tokens(volume_tokens(self.pod)),
        )
        write_volumes(self.pod, self._directory / "volumes", inputs)

    async def _refresh_volumes(self) -> None:
        while True:
            await asyncio.sleep(self._host.settings.volume_refresh)
            if not self._main or not self._node.connected.is_set():
                continue
            try:
                await self._write_volumes()
            except (VolumeError, KubeError) as error:
                # A kubelet also keeps what was mounted and tries again.
                log_event("volumes not refreshed", pod=self.name, error=str(error))

    # --- status ------------------------------------------------------------------------------

    async def _report(self) -> None:
        while True:
            await self._changed.wait()
            await self._node.connected.wait()
            self._changed.clear()
            try:
                await self._send_status()
            except KubeError as error:
                if error.is_not_found or error.is_conflict:
                    continue
                log_event("status not sent", pod=self.name, error=str(error))
                await asyncio.sleep(self._host.settings.retry)
                self._changed.set()

    async def _send_status(self) -> None:
        if not self._main and self._rejected is None:
            return
        view = LocalPod(
            containers=tuple(r.view for r in self._main),
            init=tuple(r.view for r in self._init),
            pod_ip=self._ip,
            node_ip=self._node.ip,
            start_time=self._start_time,
            sandbox=self._volumes_made,
            host_network=bool(self.pod["spec"].get("hostNetwork")),
            rejected=self._rejected,
            failed=self._failed,
        )
        status = pod_status(self.pod, view, timestamp())
        if status == self._sent:
            return
        meta = self.pod["metadata"]
        answer = await self._host.client.patch_status(
            PODS,
            meta["name"],
            status,
            namespace=meta["namespace"],
            uid=self._uid,
            strategic=True,
        )
        if version_of(answer) > version_of(self.pod):
            self.pod = answer
        self._sent = status
        # The answer may hold what others wrote meanwhile, e.g. the condition of a readiness gate:
        # its event is then older than the answer and ignored, so this is where it is seen.
        if pod_status(self.pod, view, timestamp()) != status:
            self._changed.set()


async def _cancelled(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
