"""kopf's part of the operator: what it is told, without a cluster."""

from __future__ import annotations

import asyncio
import getpass
import random
from typing import Any

import kopf
import pytest
from kopf._core.engines import peering

from pdserve.controllers import app, kopf_app
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World, now
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
    with pytest.raises(RuntimeError, match="nobody stopped it"):
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
    watching = asyncio.create_task(app._watch(core, None, random.Random(1)))
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
