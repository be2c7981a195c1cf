"""Where a client finds its API server and as whom it speaks, against a real one."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import yaml

from localcluster.controlplane import ControlPlane
from pdserve.exposition import Registry
from pdserve.kube.connect import ConnectError, connect
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import NODES

pytestmark = pytest.mark.api


async def test_connect_finds_its_configuration(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", str(control_plane.kubeconfig))
    # A proxy must not come between this process and its own machine.
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:1")
    client = await connect()
    assert (await client.list(NODES)).resource_version
    await client.close()

    monkeypatch.setenv("KUBECONFIG", f"{tmp_path / 'absent'}{os.pathsep}{control_plane.kubeconfig}")
    client = await connect()
    assert (await client.list(NODES)).resource_version
    await client.close()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file"),
        ("", "not usable"),
        ("{}", "not usable"),
        ("current-context: x\ncontexts: []\nclusters: []\nusers: []", "not usable"),
        ("a: [", "not usable"),
    ],
)
async def test_an_unusable_kubeconfig_is_named(
    tmp_path: Path, content: str | None, message: str
) -> None:
    path = tmp_path / "kubeconfig"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConnectError, match=message):
        await connect(path)


async def test_without_any_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ConnectError, match="not a pod"):
        await connect()


async def test_a_wrong_token_is_a_401(control_plane: ControlPlane, tmp_path: Path) -> None:
    content = yaml.safe_load(control_plane.kubeconfig.read_text())
    content["users"][0]["user"] = {"token": "wrong"}
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(content))
    client = await connect(path)
    with pytest.raises(KubeError) as caught:
        await client.list(NODES)
    assert (caught.value.status, caught.value.reason) == (401, "Unauthorized")
    await client.close()


async def test_requests_are_counted_by_code_and_method(control_plane: ControlPlane) -> None:
    registry = Registry()
    client = await connect(control_plane.kubeconfig, registry=registry)
    await client.list(NODES)
    with pytest.raises(KubeError):
        await client.get(NODES, "absent")
    assert registry.value("rest_client_requests_total", "200", "GET") == 1
    assert registry.value("rest_client_requests_total", "404", "GET") == 1
    await client.close()
