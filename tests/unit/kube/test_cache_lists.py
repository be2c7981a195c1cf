"""A long list does not hold the event loop while it is taken in."""

from __future__ import annotations

import asyncio

from tests.support.cache_checks import config, running, settle

from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.cache import Cache
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import CONFIGMAPS


@virtual_time
async def test_a_long_list_is_taken_in_page_by_page() -> None:
    api = FakeApi()
    client = api.client()
    for number in range(35):
        await client.create(CONFIGMAPS, config(f"a{number:02d}"))
    cache = Cache(client, CONFIGMAPS, page_size=10)
    told: list[str] = []
    cache.on_change(lambda _event, _old, new: told.append(new["metadata"]["name"] if new else "-"))
    most = before = 0
    written = False

    async def write() -> None:
        nonlocal most, before, written
        while not cache.synced.is_set():
            await asyncio.sleep(0)
            most, before = max(most, len(told) - before), len(told)
            if told and not written:
                # At once, as if the answers came now: each wait would let the cache go on.
                written = True
                put = [{"op": "add", "path": "/data/x", "value": "1"}]
                api.handle(KubeRequest("delete", CONFIGMAPS, "default", "a33"))
                for request in (
                    KubeRequest("patch", CONFIGMAPS, "default", "a34", body=put, patch="json"),
                    KubeRequest("create", CONFIGMAPS, "default", body=config("b")),
                ):
                    assert cache.observe(api.handle(request))

    writing = asyncio.create_task(write())
    async with running(cache):
        await settle()
    await writing
    assert written
    assert most <= 12, "a page, and two of ours"
    names = [obj["metadata"]["name"] for obj in cache.list()]
    assert names == [*(f"a{n:02d}" for n in range(35) if n != 33), "b"]
    assert cache.get("a34", "default")["data"] == {"x": "1"}  # type: ignore[index]  # it is there
