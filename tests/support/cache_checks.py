"""Small parts of tests of the cache: objects, what handlers heard, a cache that runs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from pdserve.dst.api_server import FakeApi
from pdserve.kube.cache import Cache
from pdserve.kube.resource import CONFIGMAPS, Object

Told = list[tuple[str, str]]


def config(name: str, data: dict[str, str] | None = None, **meta: Any) -> Object:
    return {"metadata": {"name": name, "namespace": "default", **meta}, "data": data or {}}


def record(cache: Cache) -> Told:
    told: Told = []

    def handler(event: str, old: Object | None, new: Object | None) -> None:
        told.append((event, (new or old or {})["metadata"]["name"]))

    cache.on_change(handler)
    return told


@asynccontextmanager
async def running(cache: Cache) -> AsyncIterator[Cache]:
    task = asyncio.create_task(cache.run())
    try:
        async with asyncio.timeout(600):
            await cache.synced.wait()
        yield cache
    finally:
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


async def settle() -> None:
    await asyncio.sleep(0.01)


async def patch(api: FakeApi, name: str, value: str) -> Object:
    operation = {"op": "add", "path": "/data/x", "value": value}
    return await api.client().patch_json(CONFIGMAPS, name, [operation], namespace="default")


def pruned(obj: Object) -> Object:
    meta = {k: v for k, v in obj["metadata"].items() if k != "managedFields"}
    return {**obj, "metadata": meta}
