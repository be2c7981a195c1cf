"""How far a cache may be trusted just after its server came back."""

from __future__ import annotations

import asyncio

from tests.support.cache_checks import config, running

from pdserve.dst.api_net import Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.cache import Cache
from pdserve.kube.resource import CONFIGMAPS


@virtual_time
async def test_a_server_that_is_back_tells_what_happened_event_by_event() -> None:
    """Between two of them much of what is held is gone: nothing planned may lean on it."""
    api, faults = FakeApi(), Faults(watch_delay=(0.3, 0.3))
    client, names = api.client(), ["a", "b", "c", "d"]
    for name in names:
        await client.create(CONFIGMAPS, config(name))
    cache = Cache(api.client(faults), CONFIGMAPS)
    async with running(cache):
        assert cache.state().caught_up
        faults.down = True
        api.wake_watches()
        for name in names:
            await client.delete(CONFIGMAPS, name, namespace="default")
        await asyncio.sleep(5)
        assert not cache.state().caught_up
        faults.down = False
        between = 0
        for _ in range(600):
            await asyncio.sleep(0.05)
            if cache.list():
                between += not cache.state().error
                assert not cache.state().caught_up
        assert between, "the server was back before the last event came"
        assert cache.state().caught_up
