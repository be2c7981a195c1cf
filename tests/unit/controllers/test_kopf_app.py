"""kopf's part of the operator: its settings, without a cluster."""

from __future__ import annotations

import asyncio
import getpass
import json
import random
from typing import Any

import kopf
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from kopf._cogs.clients import api
from kopf._core.engines import peering
from kopf._core.reactor import orchestration

from pdserve.controllers import app, kopf_app
from pdserve.controllers.kopf_session import session_of
from pdserve.dst.moments import now
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.exposition import Registry
from pdserve.kube.workqueue import WorkQueue


async def test_it_runs_as_a_user_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's uid is in no passwd; kopf must not ask for it. Found on a kind cluster."""

    def nameless() -> str:
        raise KeyError("getpwuid(): uid not found: 65532")

    asked: list[Any] = []

    def run(**settings: Any) -> None:
        asked.append(settings.get("identity") or peering.detect_own_id(manual=False))

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(kopf, "run", run)
    with pytest.raises(RuntimeError, match="ended without being stopped"):
        await asyncio.wait_for(kopf_app.run_kopf(WorkQueue(), None, random.Random(1)), 5)
    assert asked == ["pdserve"]


@virtual_time
async def test_a_kopf_that_fails_ends_nothing_and_is_started_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reads objects without bounds; the caches see the same changes."""
    started: list[float] = []

    async def run_kopf(*_: Any) -> None:
        started.append(asyncio.get_running_loop().time())
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(app, "run_kopf", run_kopf)
    monkeypatch.setattr(app.gc, "freeze", lambda: None)
    world = World()
    core = app.Core(
        world.api.client(), namespace=None, gateway_image="x", operator_namespace="x",
        registry=Registry(), now=now, rng=random.Random(1),
    )  # fmt: skip
    following = asyncio.create_task(core.follow())
    watching = asyncio.create_task(app.watch_with_kopf(core, None, random.Random(1)))
    await asyncio.sleep(3 * app.KOPF_AGAIN)
    assert not watching.done()
    assert len(started) == 3
    for task in (following, watching):
        task.cancel()
    await asyncio.gather(following, watching, return_exceptions=True)


def test_kopf_may_not_kill_the_process() -> None:
    """It reads objects with a recursing parser: one nested 3,000 deep ended its watcher, it did
    not get out of its own exit, and after 10 s it sent SIGKILL to the operator around it.
    """
    settings = kopf_app.make_settings(random.Random(1))
    assert settings.process.ultimate_exiting_timeout is None


async def test_a_failed_kopf_comes_to_its_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waited for the thread that waited for its stop flag, and was never started again."""

    async def fails(**_: Any) -> None:
        raise RecursionError("maximum recursion depth exceeded")

    monkeypatch.setattr(orchestration, "orchestrator", fails)
    monkeypatch.setenv("KUBECONFIG", "/nonexistent")
    with pytest.raises(RecursionError):
        await asyncio.wait_for(kopf_app.run_kopf(WorkQueue(), "x", random.Random(1)), 60)


def line(levels: int) -> bytes:
    return b'{"n": ' + b"[" * levels + b"]" * levels + b', "end": 1}\n'


@pytest.mark.parametrize("size", [7, 1 << 20])
async def test_kopf_reads_nothing_deep_whatever_its_chunks(size: int) -> None:
    async def events(_: web.Request) -> web.StreamResponse:
        return web.Response(body=line(3) + line(9000) + line(4) + line(9000)[:-8])

    async def listing(_: web.Request) -> web.StreamResponse:
        return web.Response(body=line(9000), content_type="application/json")

    app_ = web.Application()
    app_.add_routes([web.get("/events", events), web.get("/list", listing)])
    async with TestServer(app_) as server:
        made = session_of(kopf.ConnectionInfo(server=str(server.make_url("/"))))
        async with made.aiohttp_session as session:
            async with session.get(server.make_url("/events")) as answer:
                found = [
                    json.loads(part) async for part in api.iter_jsonlines(answer.content, size)
                ]
            async with session.get(server.make_url("/list")) as answer:
                found.append(await answer.json())
    assert [f["end"] for f in found] == [1, 1, 1, 1]
    assert found[0] == {"n": [[[]]], "end": 1}
