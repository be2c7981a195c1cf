"""kopf's part of the operator on a real API server: nothing stored there ends its watching."""

from __future__ import annotations

import asyncio
import json
import random
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.controllers.kopf_app import run_kopf
from pdserve.controllers.shared.triggers import SERVICE
from pdserve.dst.world_service import service
from pdserve.exposition import Registry
from pdserve.kube.workqueue import QueueKey, WorkQueue

pytestmark = [pytest.mark.api, pytest.mark.timeout(240)]
SECONDS = 30.0


@pytest.fixture
def namespace(rest: Rest) -> str:
    name = f"watched-{uuid.uuid4().hex[:6]}"
    body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
    assert rest.create("/api/v1/namespaces", body).code == 201
    return name


def path(namespace: str, name: str = "") -> str:
    return f"/apis/pdserve.io/v1alpha1/namespaces/{namespace}/pdservices" + (name and f"/{name}")


def create(rest: Rest, namespace: str, name: str, levels: int = 0) -> None:
    """A PDService; with `levels`, its template is nested so deep."""
    wanted = service(name)
    wanted["metadata"]["namespace"] = namespace
    if levels:
        wanted["spec"]["prefill"]["template"] = {"spec": {"x": "DEEP"}}
    nested = '{"a":' * levels + "1" + "}" * levels
    body = json.dumps(wanted).replace('"DEEP"', nested).encode()
    answer = rest.call("POST", path(namespace), body)
    assert answer.code == 201, answer.body


@asynccontextmanager
async def watching(
    plane: ControlPlane, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Callable[[str, Callable[[], None]], Awaitable[None]]]:
    """kopf, and a function that does something and waits until kopf says to look at an object."""
    monkeypatch.setenv("KUBECONFIG", str(plane.kubeconfig))
    queue = WorkQueue(registry=Registry(), rng=random.Random(1))
    seen: list[QueueKey] = []

    async def take() -> None:
        while True:
            key = await queue.get()
            seen.append(key)
            queue.done(key)

    kopf = asyncio.create_task(run_kopf(queue, namespace, random.Random(1)))
    taker = asyncio.create_task(take())

    async def told(name: str, act: Callable[[], None]) -> None:
        seen.clear()
        await asyncio.to_thread(act)
        deadline = time.monotonic() + SECONDS
        while QueueKey(SERVICE, namespace, name) not in seen:
            assert time.monotonic() < deadline, f"{name} is not seen: {seen}"
            assert not kopf.done(), "kopf ended"
            await asyncio.sleep(0.05)

    try:
        yield told
    finally:
        for task in (kopf, taker):
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


@pytest.mark.parametrize("levels", [100, 900, 3000])
async def test_a_deep_object_stops_no_watcher(
    control_plane: ControlPlane,
    rest: Rest,
    namespace: str,
    levels: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As an event, in the list of a fresh start, made shallow, and when it is gone."""
    nowhere = {"spec": {"prefill": {"template": None}}}
    async with watching(control_plane, namespace, monkeypatch) as told:
        await told("first", lambda: create(rest, namespace, "first"))
        await told("deep", lambda: create(rest, namespace, "deep", levels))
        await told("second", lambda: create(rest, namespace, "second"))
    async with watching(control_plane, namespace, monkeypatch) as told:
        await told("third", lambda: create(rest, namespace, "third"))
        await told("deep", lambda: patch(rest, namespace, "deep", nowhere))
        await told("fourth", lambda: create(rest, namespace, "fourth"))
        await told("deep", lambda: delete(rest, namespace, "deep"))
        await told("fifth", lambda: create(rest, namespace, "fifth"))


def patch(rest: Rest, namespace: str, name: str, body: object) -> None:
    assert rest.patch(path(namespace, name), body, "merge").code == 200


def delete(rest: Rest, namespace: str, name: str) -> None:
    assert rest.call("DELETE", path(namespace, name)).code == 200
