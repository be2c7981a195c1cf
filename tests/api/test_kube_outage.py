"""A cache while its kube-apiserver is killed, restarted and out of reach.

cache ── proxy ──> kube-apiserver ── etcd
           │ cut, refuse    │ kill, restart (on another port)
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import pytest_asyncio
import yaml
from tests.support.cluster import running_control_plane
from tests.support.cut_proxy import CutProxy

from localcluster import binaries, processes
from localcluster.controlplane import ControlPlane
from pdserve.exposition import Registry
from pdserve.kube.cache import Cache
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import connect
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import CONFIGMAPS, Object
from pdserve.kube.workqueue import Backoff

pytestmark = pytest.mark.api


def kill_api_server(plane: ControlPlane) -> None:
    pid = plane.pids["kube-apiserver"]
    os.kill(pid, signal.SIGKILL)
    while processes.is_alive(pid):
        time.sleep(0.01)


def port_of(plane: ControlPlane) -> int:
    port = urlsplit(plane.server).port
    assert port is not None
    return port


def start_api_server(plane: ControlPlane) -> int:
    plane.start_api_server(binaries.kube(programs=binaries.API_PROGRAMS))
    return port_of(plane)


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """One of our own: the session's must not be killed."""
    with running_control_plane(tmp_path_factory.mktemp("outage")) as plane:
        yield plane


@pytest_asyncio.fixture
async def proxied(
    plane: ControlPlane, tmp_path: Path
) -> AsyncIterator[tuple[CutProxy, KubeClient]]:
    proxy = CutProxy(port_of(plane))
    config = yaml.safe_load(plane.kubeconfig.read_text())
    config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{await proxy.start()}"
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    client = await connect(path)
    yield proxy, client
    await client.close()
    proxy.cut()


async def until(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110 - the condition is not ours to signal
            await asyncio.sleep(0.01)


def config(name: str, **data: str) -> Object:
    return {"metadata": {"name": name, "namespace": "default"}, "data": data}


async def remake(direct: KubeClient, *names: str) -> None:
    for item in (await direct.list(CONFIGMAPS, "default")).items:
        await direct.delete(CONFIGMAPS, item["metadata"]["name"], namespace="default")
    for name in names:
        await direct.create(CONFIGMAPS, config(name))


def follow(client: KubeClient) -> tuple[Cache, list[tuple[str, str]], Registry]:
    registry = Registry()
    cache = Cache(
        client, CONFIGMAPS, namespace="default", registry=registry, backoff=Backoff(0.05, 0.2)
    )
    told: list[tuple[str, str]] = []
    cache.on_change(lambda e, old, new: told.append((e, (new or old or {})["metadata"]["name"])))
    return cache, told, registry


async def test_a_killed_and_restarted_api_server(
    plane: ControlPlane, proxied: tuple[CutProxy, KubeClient]
) -> None:
    proxy, client = proxied
    direct = await connect(plane.kubeconfig)
    await remake(direct, "a", "b")
    await direct.close()
    cache, told, _ = follow(client)
    task = asyncio.create_task(cache.run())
    await until(cache.synced.is_set)

    kill_api_server(plane)
    await until(lambda: bool(cache.state().error))
    assert [o["metadata"]["name"] for o in cache.list()] == ["a", "b"], "reads go on"
    with pytest.raises(KubeError) as caught:
        await client.get(CONFIGMAPS, "a", "default")
    assert caught.value.is_unreachable

    proxy.backend = await asyncio.to_thread(start_api_server, plane)
    direct = await connect(plane.kubeconfig)
    await direct.create(CONFIGMAPS, config("c"))
    await direct.delete(CONFIGMAPS, "b", namespace="default")
    await until(lambda: cache.get("c", "default") is not None and len(cache) == 2)
    assert not cache.state().error
    assert told == [("ADDED", "a"), ("ADDED", "b"), ("ADDED", "c"), ("DELETED", "b")]
    task.cancel()
    await direct.close()


async def test_a_deletion_missed_behind_an_expired_watch(
    plane: ControlPlane, proxied: tuple[CutProxy, KubeClient]
) -> None:
    proxy, client = proxied
    direct = await connect(plane.kubeconfig)
    await remake(direct, "changed", "gone", "kept", "replaced")
    cache, told, registry = follow(client)
    task = asyncio.create_task(cache.run())
    await until(cache.synced.is_set)
    told.clear()

    proxy.cut()
    await until(lambda: bool(cache.state().error))
    await direct.delete(CONFIGMAPS, "gone", namespace="default")
    await direct.delete(CONFIGMAPS, "replaced", namespace="default")
    await direct.create(CONFIGMAPS, config("replaced"))
    await direct.create(CONFIGMAPS, config("new"))
    data = [{"op": "add", "path": "/data", "value": {"x": "1"}}]
    await direct.patch_json(CONFIGMAPS, "changed", data, namespace="default")
    await direct.close()
    # A new API server remembers no history: the watch's old version is answered by 410.
    kill_api_server(plane)
    proxy.backend = await asyncio.to_thread(start_api_server, plane)
    assert told == []
    proxy.mend()

    await until(lambda: not cache.state().error and cache.get("new", "default") is not None)
    assert sorted(told) == [
        ("ADDED", "new"),
        ("ADDED", "replaced"),
        ("DELETED", "gone"),
        ("DELETED", "replaced"),
        ("MODIFIED", "changed"),
    ]
    assert registry.value("pdserve_cache_relists_total", "configmaps") == 2
    task.cancel()
