"""A cache that keeps values in place of JSON follows the same rules."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.cache import ViewCache
from pdserve.kube.resource import CONFIGMAPS, Object


@dataclass(frozen=True)
class Colour:
    """All that is read of a ConfigMap."""

    uid: str
    name: str


def colour(obj: Object) -> Colour | None:
    found = obj["data"]["colour"]
    return None if found == "none" else Colour(obj["metadata"]["uid"], found)


@virtual_time
async def test_values_are_kept_compared_and_found_as_objects_are() -> None:
    api, told, skipped = FakeApi(), [], []
    client = api.client()

    def on_skip(obj: object, where: str, error: Exception) -> None:
        skipped.append((where, type(error).__name__))

    cache = ViewCache(client, CONFIGMAPS, colour, on_skip=on_skip)
    cache.add_index("colour", lambda c: (c.name,))
    cache.on_change(lambda event, old, new: told.append((event, name(old), name(new))))

    async def write(value: Any) -> None:
        operation = {"op": "replace", "path": "/data", "value": value}
        await client.patch_json(CONFIGMAPS, "a", [operation], namespace="default")
        await asyncio.sleep(1)

    first = await client.create(CONFIGMAPS, made("red"))
    following = asyncio.create_task(cache.run())
    await cache.synced.wait()
    assert cache.get("a", "default") == Colour(first["metadata"]["uid"], "red")

    await write({"colour": "red", "size": "9"})
    assert told == [("ADDED", None, "red")], "what no value holds is no change"

    await write({"colour": "blue"})
    assert told[1:] == [("MODIFIED", "red", "blue")]
    assert [c.name for c in cache.by_index("colour", "blue")] == ["blue"]
    assert cache.index_values("colour") == {"blue"}

    await write({"size": "9"})
    assert skipped == [("filter", "KeyError")]
    held = cache.get("a", "default")
    assert held is not None
    assert held.name == "blue", "what was read last stays"

    await client.delete(CONFIGMAPS, "a", namespace="default")
    second = await client.create(CONFIGMAPS, made("blue"))
    await asyncio.sleep(1)
    assert told[2:] == [("DELETED", "blue", None), ("ADDED", None, "blue")]

    assert not cache.observe_gone(first), "another object of its name"
    assert cache.observe_gone(second)
    assert len(cache) == 0
    following.cancel()


def made(value: str) -> Object:
    return {"metadata": {"name": "a", "namespace": "default"}, "data": {"colour": value}}


def name(found: Colour | None) -> str | None:
    return None if found is None else found.name
