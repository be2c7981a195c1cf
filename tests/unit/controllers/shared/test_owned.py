"""Deleting objects of ours: the cache shows at once what the API server answered."""

from __future__ import annotations

import asyncio

import pytest
from tests.support.cache_checks import config, running

from pdserve.controllers.shared.owned import delete_owned
from pdserve.dst.api_net import Faults
from pdserve.dst.api_server import FakeApi
from pdserve.dst.virtual_time import virtual_time
from pdserve.kube.cache import Cache
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONFIGMAPS


@virtual_time
async def test_what_is_gone_is_not_seen_again() -> None:
    api = FakeApi()
    client = api.client()
    cache = Cache(api.client(Faults(watch_delay=(5, 5))), CONFIGMAPS)
    async with running(cache):
        made = await client.create(CONFIGMAPS, config("a"))
        cache.observe(made)
        await delete_owned(client, cache, made)
        assert cache.get("a", "default") is None
        await delete_owned(client, cache, made)
        await asyncio.sleep(30)
        assert cache.get("a", "default") is None


@virtual_time
async def test_what_has_to_end_first_is_seen_until_its_end() -> None:
    api = FakeApi()
    client = api.client()
    cache = Cache(api.client(Faults(watch_delay=(5, 5))), CONFIGMAPS)
    async with running(cache):
        body = config("a")
        body["metadata"]["finalizers"] = ["example.com/archive"]
        made = await client.create(CONFIGMAPS, body)
        cache.observe(made)
        await delete_owned(client, cache, made)
        held = cache.get("a", "default")
        assert held is not None
        assert "deletionTimestamp" in held["metadata"]
        operation = {"op": "remove", "path": "/metadata/finalizers"}
        await client.patch_json(CONFIGMAPS, "a", [operation], namespace="default")
        await asyncio.sleep(30)
        assert cache.get("a", "default") is None


@virtual_time
async def test_another_object_of_the_name_is_left_alone() -> None:
    api = FakeApi()
    client, cache = api.client(), Cache(api.client(), CONFIGMAPS)
    async with running(cache):
        made = await client.create(CONFIGMAPS, config("a"))
        await client.delete(CONFIGMAPS, "a", namespace="default")
        successor = await client.create(CONFIGMAPS, config("a"))
        with pytest.raises(KubeError) as refused:
            await delete_owned(client, cache, made)
        assert refused.value.is_conflict
        found = await client.get(CONFIGMAPS, "a", "default")
        assert found["metadata"]["uid"] == successor["metadata"]["uid"]
