"""Follows the pods bound to our nodes and gives each a `PodWorker`.

It lists the pods, then watches, and lists again when the watch is too old. After a list, each pod
without a worker gets one, and each worker whose pod is not in the list ends.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp

from localcluster.agent.addresses import ClusterNumber, NodeAddresses
from localcluster.agent.host import AgentSettings, Host, log_event
from localcluster.agent.nodes import ProcessNode
from localcluster.agent.pods import PodWorker
from localcluster.agent.sandbox import Sandbox
from localcluster.config import ClusterConfig
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import connect
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import PODS, Object

KUBELET_PORT = 10250
_REQUESTS_PER_SECOND = 2000.0


class NodeAgent:
    """All process nodes of one cluster. Use `serve` to run it until cancelled."""

    def __init__(
        self, config: ClusterConfig, state_dir: Path, server: str, settings: AgentSettings
    ) -> None:
        self._config = config
        self._state_dir = state_dir
        self._server = server
        self._settings = settings
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.nodes: dict[str, ProcessNode] = {}
        self.ready = asyncio.Event()
        """Set once every node is registered and ready for pods."""
        self.why_no_namespaces: str | None = None

    @property
    def client(self) -> KubeClient:
        """The agent's connection; only while it serves."""
        return self._host.client

    def workers(self) -> Sequence[PodWorker]:
        """Pods on this machine now."""
        return list(self._workers.values())

    def worker(self, namespace: str, name: str) -> PodWorker | None:
        """The pod of that name, if it is here."""
        wanted = f"{namespace}/{name}"
        return next((w for w in self._workers.values() if w.name == wanted), None)

    async def serve(self) -> None:
        """Register the nodes and run their pods until cancelled; then end all processes."""
        async with AsyncExitStack() as stack:
            self._host = await self._open(stack)
            number = ClusterNumber()
            stack.callback(number.release)
            for ordinal, spec in enumerate(self._config.nodes, start=1):
                addresses = NodeAddresses(number.number, ordinal)
                node = ProcessNode(spec, self._config.resource, addresses, KUBELET_PORT)
                self.nodes[node.name] = node
            stack.push_async_callback(self._end_pods)
            await asyncio.gather(*(node.register(self.client) for node in self.nodes.values()))
            log_event("nodes registered", count=len(self.nodes), network=f"127.{number.number}")
            self.ready.set()
            async with asyncio.TaskGroup() as tasks:
                for node in self.nodes.values():
                    tasks.create_task(node.heartbeats(self.client, self._settings))
                tasks.create_task(self._follow_pods())

    async def _open(self, stack: AsyncExitStack) -> Host:
        client = await connect(
            self._state_dir / "kubeconfig",
            rate=_REQUESTS_PER_SECOND,
            burst=int(_REQUESTS_PER_SECOND),
            user_agent="pdserve-node-agent",
        )
        stack.push_async_callback(client.close)
        connector = aiohttp.TCPConnector(ssl=False, force_close=True, limit=0)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        directory = self._state_dir / "pods"
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(mode=0o700)
        sandbox = Sandbox()
        if self._settings.namespaces:
            await sandbox.check(directory / "check")
        else:
            sandbox.why_not = "switched off"
        self.why_no_namespaces = sandbox.why_not
        if sandbox.why_not is not None:
            log_event("pods run without namespaces", why=sandbox.why_not)
        url = urlsplit(self._server)
        return Host(
            client=client,
            session=session,
            sandbox=sandbox,
            settings=self._settings,
            directory=directory,
            logs=self._state_dir / "logs" / "pods",
            api_host=url.hostname or "127.0.0.1",
            api_port=url.port or 443,
        )

    async def _follow_pods(self) -> None:
        while True:
            try:
                listing = await self.client.list(PODS)
                self._relist(listing.items)
                await self._watch(listing.resource_version)
            except KubeError as error:
                if not error.is_gone:
                    log_event("cannot follow pods", error=str(error))
                    await asyncio.sleep(self._settings.retry)

    async def _watch(self, version: str) -> None:
        while True:
            try:
                async for event in self.client.watch(PODS, resource_version=version):
                    version = event.object["metadata"]["resourceVersion"]
                    if event.type == "DELETED":
                        self._removed(event.object["metadata"]["uid"])
                    elif event.type != "BOOKMARK":
                        self._seen(event.object)
            except KubeError as error:
                if error.is_gone:
                    raise
                await asyncio.sleep(self._settings.retry)

    def _relist(self, pods: Sequence[Object]) -> None:
        for pod in pods:
            self._seen(pod)
        listed = {pod["metadata"]["uid"] for pod in pods}
        for uid in [uid for uid in self._workers if uid not in listed]:
            self._removed(uid)

    def _seen(self, pod: Object) -> None:
        uid = pod["metadata"]["uid"]
        if uid in self._workers:
            self._workers[uid].update(pod)
            return
        node = self.nodes.get(pod["spec"].get("nodeName") or "")
        finished = (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")
        deleting = pod["metadata"].get("deletionTimestamp")
        if node is None or (finished and not deleting):
            return
        worker = PodWorker(pod, node, self._host)
        self._workers[uid] = worker
        task = asyncio.create_task(worker.run(), name=worker.name)
        self._tasks[uid] = task
        task.add_done_callback(lambda done: self._ended(uid, done))

    def _removed(self, uid: str) -> None:
        if uid in self._workers:
            self._workers[uid].removed()

    def _ended(self, uid: str, task: asyncio.Task[None]) -> None:
        worker = self._workers.pop(uid)
        del self._tasks[uid]
        if not task.cancelled() and (error := task.exception()) is not None:
            log_event("pod worker failed", pod=worker.name, error=repr(error))

    async def _end_pods(self) -> None:
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
