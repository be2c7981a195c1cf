"""Clusters of real kubelets and containers, made by the kind program on a Docker engine.

One cluster is one state directory (as for process nodes, see `cluster`), which holds a kubeconfig
of its own and a note of what was made. The order of `up`:

1. `kind create cluster`, unless it runs; stopped nodes are started again.
2. Fake devices for the workers (`devices`).
3. Images that the engine has and a worker lacks, or has in another version (`kindimages`).
4. Wait until every node is Ready and every worker's devices can be allocated.

An `up` that fails or is interrupted before 2 leaves no cluster. What a killed one left there, the
next `up` or `down` removes.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import yaml

from localcluster import binaries, devices, docker, kindroom, processes
from localcluster.commands import CommandError, answer, follow
from localcluster.errors import LocalError, Progress, quiet, sparsely
from localcluster.kindimages import DEFAULT_IMAGES, load_images
from localcluster.kindnodes import KindNode, seen_node, wait_ready
from localcluster.paths import ClusterFiles
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import ConnectError, connect
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import NODES, PODS
from pdserve.terms.json import JsonMap, JsonObject

ENV_NODE_IMAGE = "KIND_NODE_IMAGE"
STATE = "kind.json"

CREATE_TIMEOUT = 900.0
"""Includes pulling the node image, about 400 MB, on a machine's first start."""
_DELETE_SECONDS = 600.0
_SETTLE_SECONDS = 3.0
_POLL_SECONDS = 0.25
_CREATING, _CREATED = "creating", "created"
_STEP = " • "
"""How kind begins a line that says what it does now."""

T = TypeVar("T")
Containers = Mapping[str, docker.NodeContainer]


@dataclass(frozen=True, slots=True)
class KindPlan:
    """What a kind cluster is to be. `document` is what the kind program reads."""

    document: JsonMap
    resource: str = "huawei.com/Ascend910"
    devices: int = 8
    images: tuple[str, ...] = DEFAULT_IMAGES
    """Loaded into the workers where the engine has them."""


@dataclass(frozen=True, slots=True)
class KindStatus:
    """A kind cluster as seen from outside. `problem` says why it does not answer."""

    running: bool
    kubeconfig: Path
    server: str = ""
    version: str = ""
    problem: str = ""
    nodes: tuple[KindNode, ...] = ()
    pods: Mapping[str, int] = field(default_factory=dict)
    """Pods per node."""


class KindCluster(ClusterFiles):
    """One kind cluster by name, running or not."""

    @property
    def exists(self) -> bool:
        """Whether this directory is of a kind cluster at all."""
        return (self.state_dir / STATE).is_file()

    def up(self, plan: KindPlan, progress: Progress = quiet) -> None:
        """Make it, or bring the running one up to date, and return when it can take pods.

        Raises:
            LocalError: no engine, no node image, the name is taken by another cluster, it runs with
            another
                configuration, or it did not get ready; the message says what to do.
        """
        docker.check()
        program = binaries.kind(progress)
        with self._exclusive(progress):
            if not self._is_made(plan, program, progress):
                self._create(plan, program, progress)
            containers = docker.node_containers(self.name)
            self._start_stopped(containers, progress)
            self._in_cluster(lambda client: self._give_devices(client, plan, progress))
            self._load(plan, containers, program, progress)
            self._in_cluster(
                lambda client: wait_ready(
                    client, set(containers), plan.resource, plan.devices, progress
                )
            )

    def down(self, progress: Progress = quiet) -> bool:
        """End it and remove all it left; False if there was nothing."""
        if not self.exists:
            return False
        docker.check()
        program = binaries.kind(progress)
        with self._exclusive(progress):
            if existed := self.exists:
                self._delete(program)
            self._forget()
        return existed

    def status(self) -> KindStatus:
        """Whether it runs, and what runs in it."""
        try:
            docker.check()
            containers = docker.node_containers(self.name)
        except LocalError as error:
            return KindStatus(False, self.kubeconfig, problem=str(error))
        if self._phase() != _CREATED or not containers:
            return KindStatus(False, self.kubeconfig, problem=_why_not(self._phase()))
        try:
            return self._in_cluster(lambda client: self._look(client, containers))
        except LocalError as error:
            nodes = tuple(
                KindNode(c.name, c.role, "unknown" if c.running else "stopped")
                for c in containers.values()
            )
            return KindStatus(False, self.kubeconfig, problem=str(error), nodes=nodes)

    # --- making ------------------------------------------------------------------------------

    def _is_made(self, plan: KindPlan, program: Path, progress: Progress) -> bool:
        phase = self._phase()
        if phase is None and self.name in _kind_clusters(program):
            raise LocalError(
                f"there is a kind cluster {self.name!r} that `pdserve local up` did not make; "
                f"choose another --name, or end that one: kind delete cluster --name {self.name}"
            )
        if phase != _CREATED:
            return False
        if not docker.node_containers(self.name):
            progress(f"cluster {self.name!r} has vanished from the engine: making it again")
            return False
        if self._read()["document"] != _plain(plan.document):
            raise LocalError(
                f"cluster {self.name!r} already runs with another configuration; "
                "end it first (down), or give this one another name"
            )
        progress(f"cluster {self.name!r} is already running")
        return True

    def _create(self, plan: KindPlan, program: Path, progress: Progress) -> None:
        self._own_directory()
        if self._phase() is not None:
            self._delete(program)  # what an `up` that was killed left
        kindroom.check(len(plan.document["nodes"]), self.name)
        self._write(_CREATING, plan)
        config = self.state_dir / "kind-config.yaml"
        config.write_text(yaml.safe_dump(_plain(plan.document), sort_keys=False), encoding="utf-8")
        argv = [str(program), "create", "cluster", "--name", self.name, "--config", str(config)]
        argv += ["--kubeconfig", str(self.kubeconfig)]
        if image := os.environ.get(ENV_NODE_IMAGE):
            argv += ["--image", image]
        began = time.monotonic()
        try:
            self._follow(argv, "create", CREATE_TIMEOUT, progress)
        except CommandError as error:
            self._delete(program)
            self._forget()
            raise create_error(self.name, error) from error
        except BaseException:
            progress(f"removing what there is of {self.name!r}")
            self._delete(program, settle=_SETTLE_SECONDS)
            self._forget()
            raise
        self.kubeconfig.chmod(0o600)
        self._write(_CREATED, plan)
        progress(f"kind made cluster {self.name!r} in {time.monotonic() - began:.0f} s")

    def _start_stopped(self, containers: Containers, progress: Progress) -> None:
        stopped = [c.name for c in containers.values() if not c.running]
        if stopped:
            progress(f"starting nodes that were stopped: {', '.join(stopped)}")
            docker.start(stopped)

    async def _give_devices(self, client: KubeClient, plan: KindPlan, progress: Progress) -> None:
        given = await devices.set_up(client, plan.resource, plan.devices)
        total = sum(node.devices for node in given)
        progress(f"{total} fake devices {plan.resource} on {len(given)} workers")

    def _load(
        self, plan: KindPlan, containers: Containers, program: Path, progress: Progress
    ) -> None:
        workers = [c.name for c in containers.values() if c.role == "worker"]
        argv = [str(program), "load", "image-archive", "--name", self.name]
        load_images(
            workers or list(containers),
            plan.images,
            directory=self.state_dir,
            kind_load=lambda archive, node: self._follow(
                [*argv, "--nodes", node, str(archive)], f"load-{node}", CREATE_TIMEOUT, progress
            ),
            progress=progress,
        )

    def _delete(self, program: Path, settle: float = 0.0) -> None:
        """Remove the cluster.

        When its making was interrupted, the engine may still be starting nodes that it was asked
        for: it must then be without any for `settle` seconds.
        """
        argv = [str(program), "delete", "cluster", "--name", self.name]
        argv += ["--kubeconfig", str(self.kubeconfig)]
        deadline = processes.Deadline(_DELETE_SECONDS)
        answer(argv, seconds=_DELETE_SECONDS)
        settled = processes.Deadline(settle)
        while True:
            over = settled.passed  # asked before the look, which may take its time
            if docker.node_containers(self.name):
                if deadline.passed:
                    raise LocalError(f"kind delete cluster --name {self.name} leaves containers")
                answer(argv, seconds=_DELETE_SECONDS)
                settled = processes.Deadline(settle)
            elif over:
                return
            time.sleep(_POLL_SECONDS)

    def _follow(self, argv: Sequence[str], what: str, seconds: float, progress: Progress) -> None:
        logs = self.state_dir / "logs"
        logs.mkdir(exist_ok=True)
        step = ""
        still = sparsely(progress)

        def line(text: str) -> None:
            nonlocal step
            if text.startswith(_STEP):
                # Steps end in pictures that not every terminal has.
                step = text.removeprefix(_STEP).encode("ascii", "ignore").decode().strip(" .")
                progress(f"kind: {step}")

        def tick(now: float) -> None:
            still(f"kind: {step or what}: {now:.0f} s")

        follow(argv, logs / f"kind-{what}.log", seconds=seconds, line=line, tick=tick)

    # --- looking -----------------------------------------------------------------------------

    async def _look(self, client: KubeClient, containers: Containers) -> KindStatus:
        nodes, pods = await asyncio.gather(client.list(NODES), client.list(PODS))
        plan = self._read()
        by_name = {str(n["metadata"]["name"]): n for n in nodes.items}
        counts: dict[str, int] = {}
        for pod in pods.items:
            on = pod["spec"].get("nodeName", "")
            counts[on] = counts.get(on, 0) + 1
        seen = tuple(
            seen_node(container, by_name.get(name), plan["resource"])
            for name, container in containers.items()
        )
        kubelets = {n["status"]["nodeInfo"]["kubeletVersion"] for n in nodes.items}
        return KindStatus(
            running=True,
            kubeconfig=self.kubeconfig,
            server=_server(self.kubeconfig),
            version=", ".join(sorted(kubelets)),
            nodes=seen,
            pods=counts,
        )

    def _in_cluster(self, do: Callable[[KubeClient], Awaitable[T]]) -> T:
        async def run() -> T:
            client = await connect(self.kubeconfig, user_agent="pdserve-local")
            try:
                return await do(client)
            finally:
                await client.close()

        try:
            return asyncio.run(run())
        except (KubeError, ConnectError) as error:
            raise LocalError(f"the API server of {self.name!r} does not answer: {error}") from error

    # --- state directory -----------------------------------------------------------------------

    def _own_directory(self) -> None:
        """Refuse a directory that holds anything else: `down` would delete it."""
        known = {STATE, "up.lock", "logs"}
        foreign = sorted({entry.name for entry in self.state_dir.iterdir()} - known)
        if foreign and not self.exists:
            raise LocalError(
                f"{self.state_dir} holds other things ({', '.join(foreign[:3])}); "
                "choose an empty directory for a cluster's state"
            )

    def _read(self) -> JsonObject:
        document: JsonObject = json.loads((self.state_dir / STATE).read_text(encoding="utf-8"))
        return document

    def _write(self, phase: str, plan: KindPlan) -> None:
        document = {
            "phase": phase,
            "document": _plain(plan.document),
            "resource": plan.resource,
            "devices": plan.devices,
        }
        fresh = self.state_dir / f"{STATE}.new"
        fresh.write_text(json.dumps(document, indent=1), encoding="utf-8")
        fresh.rename(self.state_dir / STATE)

    def _phase(self) -> str | None:
        return str(self._read()["phase"]) if self.exists else None

    def _forget(self) -> None:
        for entry in self.state_dir.iterdir():
            if entry.is_dir():
                shutil.rmtree(entry, ignore_errors=True)
            elif entry.name != "up.lock":
                entry.unlink()
        (self.state_dir / "up.lock").unlink(missing_ok=True)
        self.state_dir.rmdir()

    @contextmanager
    def _exclusive(self, progress: Progress) -> Iterator[None]:
        while True:
            self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
            path = self.state_dir / "up.lock"
            with path.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    progress(f"waiting: another process is making or ending {self.name!r}")
                    fcntl.flock(lock, fcntl.LOCK_EX)
                # Its former holder may have been `down`, which takes the file away.
                if path.exists() and path.stat().st_ino == os.fstat(lock.fileno()).st_ino:
                    yield
                    return


def _kind_clusters(program: Path) -> list[str]:
    return answer([str(program), "get", "clusters"]).split()


def create_error(name: str, error: CommandError) -> LocalError:
    """The error for a kind cluster that could not be made, which says what to do about it."""
    if "failed to pull image" in error.said:
        image = os.environ.get(ENV_NODE_IMAGE, "kind's default node image")
        return LocalError(
            f"{image} is not on the engine and cannot be pulled. With a registry mirror or a "
            f"local image, set {ENV_NODE_IMAGE} to its name (`docker images kindest/node`).\n"
            f"{error}"
        )
    found = f"cluster {name!r} could not be made, and nothing of it is left: {error}"
    return LocalError(found + (kindroom.hint() if "kubeadm" in error.said else ""))


def _why_not(phase: str | None) -> str:
    if phase == _CREATING:
        return "it is being made, or its making was killed (`up` makes it anew, `down` cleans up)"
    return "the engine has no containers of it any more" if phase else ""


def _server(kubeconfig: Path) -> str:
    document = yaml.safe_load(kubeconfig.read_text(encoding="utf-8"))
    return str(document["clusters"][0]["cluster"]["server"])


def _plain(value: Any) -> Any:
    """The same as JSON would give it back, so that it can be compared with what was saved."""
    return json.loads(json.dumps(value))
