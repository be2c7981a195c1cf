"""The part of a kubelet's own API that `kubectl logs` needs.

The API server calls it at the node's InternalIP. A local cluster has no client certificates, so
only processes of this user are answered: the kernel's table of TCP sockets shows which user owns
the other end of a loopback connection.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from aiohttp import web

from localcluster.agent.agent import KUBELET_PORT, NodeAgent
from localcluster.agent.pods import PodWorker

_CHUNK = 64 * 1024
_FOLLOW_SECONDS = 0.25
_UNSUPPORTED = ("sinceSeconds", "sinceTime", "timestamps")

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class KubeletServer:
    """HTTPS on port 10250 of every node's address; `pki` holds the API server's certificate."""

    def __init__(self, agent: NodeAgent, pki: Path) -> None:
        self._agent = agent
        self._pki = pki

    async def serve(self) -> None:
        """Listen until cancelled, from when the nodes have their addresses."""
        await self._agent.ready.wait()
        app = web.Application(middlewares=[_only_this_user])
        app.router.add_get("/containerLogs/{namespace}/{pod}/{container}", self._logs)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self._pki / "apiserver.crt", self._pki / "apiserver.key")
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        try:
            for node in self._agent.nodes.values():
                await web.TCPSite(runner, node.ip, KUBELET_PORT, ssl_context=context).start()
            await asyncio.Event().wait()
        finally:
            await runner.cleanup()

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        unsupported = [name for name in _UNSUPPORTED if request.query.get(name)]
        if unsupported:
            text = f"{', '.join(unsupported)}: not supported on process nodes"
            return web.Response(status=400, text=text)
        info = request.match_info
        worker = self._agent.worker(info["namespace"], info["pod"])
        if worker is None:
            return web.Response(status=404, text=f"pod {info['pod']!r} is not on this node")
        previous = request.query.get("previous") == "true"
        log = _log_file(worker, info["container"], previous)
        if log is None:
            which = "previous run of container" if previous else "container"
            return web.Response(status=404, text=f"no log: {which} {info['container']!r}")
        reply = web.StreamResponse(headers={"Content-Type": "text/plain"})
        reply.enable_chunked_encoding()
        await reply.prepare(request)
        tail = request.query.get("tailLines")
        limit = int(request.query.get("limitBytes") or 1 << 62)
        follow = request.query.get("follow") == "true" and not previous
        offset = 0 if tail is None else tail_offset(log, int(tail))
        await _send(reply, worker, log, offset, limit, follow)
        await reply.write_eof()
        return reply


async def _send(
    reply: web.StreamResponse, worker: PodWorker, log: Path, offset: int, limit: int, follow: bool
) -> None:
    """Copy `log` from `offset`, `limit` bytes at most; `follow` while its run goes on."""
    with log.open("rb") as file:
        file.seek(offset)
        while limit > 0:
            # Asked before reading, so that what a container said last is not missed.
            alive = follow and _writes(worker, log)
            chunk = file.read(min(_CHUNK, limit))
            if chunk:
                limit -= len(chunk)
                await reply.write(chunk)
            elif alive:
                await asyncio.sleep(_FOLLOW_SECONDS)
            else:
                return


def _writes(worker: PodWorker, log: Path) -> bool:
    """Whether the run that `log` is of goes on."""
    return any(
        runner.running is not None and runner.running.log == log for runner in worker.containers()
    )


def _log_file(worker: PodWorker, container: str, previous: bool) -> Path | None:
    directory = worker.log_dir / container
    if not directory.is_dir():
        return None
    runs = sorted(directory.glob("*.log"), key=lambda path: int(path.stem))
    index = -2 if previous else -1
    return runs[index] if len(runs) >= -index else None


def tail_offset(log: Path, lines: int) -> int:
    """Where the last `lines` lines of a file begin."""
    content = log.read_bytes()
    end = len(content) - 1 if content.endswith(b"\n") else len(content)
    for _ in range(lines):
        end = content.rfind(b"\n", 0, end)
        if end < 0:
            return 0
    return end + 1 if lines else len(content)


@web.middleware
async def _only_this_user(request: web.Request, handler: Handler) -> web.StreamResponse:
    transport = request.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    here = transport.get_extra_info("sockname") if transport is not None else None
    if peer is None or here is None or owner_of(peer, here) != os.getuid():
        return web.Response(status=403, text="not a process of this cluster's user")
    return await handler(request)


def owner_of(near: tuple[str, int], far: tuple[str, int]) -> int | None:
    """User id of the local process that holds end `near` of the TCP connection to `far`, or None.

    Both ends count: connections that ended a moment ago from the same port are listed too, as
    root's.
    """
    ends = [_end(near), _end(far)]
    for line in Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == ends:
            return int(fields[7])
    return None


def _end(address: tuple[str, int]) -> str:
    """One end as the kernel prints it: the address is a word in the machine's byte order."""
    word = int.from_bytes(socket.inet_aton(address[0]), sys.byteorder)
    return f"{word:08X}:{address[1]:04X}"
