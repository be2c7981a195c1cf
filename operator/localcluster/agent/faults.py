"""Breaks things on request, and answers what runs here: the agent's admin socket.

A Unix socket in the state directory, which only its owner may enter. One JSON object per line in,
one out: `{"do": NAME, ...arguments}` -> `{"ok": true, "result": ...}` or
`{"ok": false, "error": TEXT}`. `localcluster.admin` is its client.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import Callable
from typing import Any

from localcluster.agent.agent import NodeAgent
from localcluster.agent.host import log_event
from localcluster.agent.nodes import ProcessNode
from localcluster.agent.pods import PodWorker
from localcluster.agent.sandbox import RunningContainer
from pdserve.terms.json import JsonObject

SOCKET = "agent.sock"


class FaultError(Exception):
    """What was asked cannot be done; the message says why."""


class AdminServer:
    """Serves the admin socket of one agent."""

    def __init__(self, agent: NodeAgent, extra_status: Callable[[], JsonObject]) -> None:
        self._agent = agent
        self._extra_status = extra_status
        self._tasks: set[asyncio.Task[None]] = set()
        self._actions: dict[str, Callable[..., Any]] = {
            "status": self._status,
            "kill": self._kill,
            "freeze": self._freeze,
            "cut": self._cut,
            "stop": self._stop,
            "start": self._start,
            "device": self._device,
        }

    async def serve(self) -> None:
        """Listen until cancelled, in the working directory, which must be the state directory."""
        # A relative name, because an absolute one may exceed what a socket address holds.
        server = await asyncio.start_unix_server(self._talk, SOCKET)
        async with server:
            await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(json.dumps(await self._answer(line)).encode() + b"\n")
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> JsonObject:
        try:
            request = json.loads(line)
            name = request.pop("do")
            if name not in self._actions:
                known = ", ".join(sorted(self._actions))
                raise FaultError(f"do: {name!r}, expected one of {known}")
            result = self._actions[name](**request)
            if asyncio.iscoroutine(result):
                result = await result
            if name != "status":
                log_event("admin", do=name, **request)
        except FaultError as error:
            return {"ok": False, "error": str(error)}
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            return {"ok": False, "error": f"bad request: {type(error).__name__}: {error}"}
        return {"ok": True, "result": result}

    def _status(self) -> JsonObject:
        return {
            "nodes": {
                node.name: {
                    "connected": node.connected.is_set(),
                    "stopped": node.stopped,
                    "ip": node.ip,
                    "unhealthy": sorted(node.devices.unhealthy),
                }
                for node in self._agent.nodes.values()
            },
            "pods": {
                worker.name: {
                    "node": worker.node.name,
                    "logs": str(worker.log_dir),
                    "pids": {
                        runner.view.name: runner.running.pid
                        for runner in worker.containers()
                        if runner.running is not None
                    },
                }
                for worker in self._agent.workers()
            },
            "without_namespaces": self._agent.why_no_namespaces,
            **self._extra_status(),
        }

    def _kill(self, namespace: str, pod: str, container: str = "") -> None:
        """SIGKILL the main process of a container, as a crash would end it."""
        running = self._running(namespace, pod, container)
        pid = running.pid
        if pid is None:
            raise FaultError(f"{namespace}/{pod}: is just being started")
        os.kill(pid, signal.SIGKILL)

    def _freeze(self, namespace: str, pod: str, frozen: bool, container: str = "") -> None:
        self._running(namespace, pod, container).freeze(frozen)

    def _cut(self, node: str, cut: bool) -> None:
        """Stop (or resume) everything this node says to the API server."""
        target = self._node(node)
        if target.stopped:
            raise FaultError(f"{node} is stopped: start it")
        if cut:
            target.connected.clear()
        else:
            target.connected.set()

    def _stop(self, node: str) -> None:
        """The node goes down as if its power failed: no heartbeat, its containers are gone."""
        target = self._node(node)
        target.stopped = True
        target.connected.clear()
        for worker in self._on(target):
            worker.lose_power()

    async def _start(self, node: str) -> None:
        """A stopped node comes back; its containers start again, at new addresses."""
        target = self._node(node)
        if not target.stopped:
            return
        target.stopped = False
        target.connected.set()
        for worker in self._on(target):
            task = asyncio.create_task(worker.regain_power())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _on(self, node: ProcessNode) -> list[PodWorker]:
        return [worker for worker in self._agent.workers() if worker.node is node]

    async def _device(self, node: str, device: int, unhealthy: bool) -> None:
        target = self._node(node)
        if not 0 <= device < target.devices.count:
            raise FaultError(f"device: {device}, {node} has 0 to {target.devices.count - 1}")
        await target.set_unhealthy(self._agent.client, device, unhealthy)

    def _node(self, name: str) -> ProcessNode:
        if name not in self._agent.nodes:
            raise FaultError(f"node: {name!r}, expected one of {', '.join(self._agent.nodes)}")
        return self._agent.nodes[name]

    def _running(self, namespace: str, pod: str, container: str) -> RunningContainer:
        worker = self._agent.worker(namespace, pod)
        if worker is None:
            raise FaultError(f"no pod {namespace}/{pod} on these nodes")
        for runner in worker.containers():
            if runner.running is not None and container in ("", runner.view.name):
                return runner.running
        raise FaultError(f"{namespace}/{pod}: no running container {container or ''}".rstrip())
