"""The gateway follows its route table in a real API server, and serves on when that is away.

gateway ── proxy ──> kube-apiserver
             │ cut, open
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import yaml
from tests.support.cut_proxy import CutProxy
from tests.support.gateway_rig import Rig, eventually
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.gateway.route_source import ConfigMapSource, parse_source
from pdserve.terms import Slo
from pdserve.wire.names import KEY_ROUTES
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable

pytestmark = pytest.mark.api

SLO = Slo(ttft=30.0, handoff=30.0, tpot=5.0, attainment=0.9)
"""Wide: a busy machine may be slow, and a gateway refuses what it cannot serve in time."""
NAME = "gatewaytest-routes"
PATH = f"/api/v1/namespaces/default/configmaps/{NAME}"


@dataclass(frozen=True)
class KubeConfig:
    """Where a kubeconfig is, and what is in it."""

    path: Path
    value: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.value["clusters"][0]["cluster"]["server"].rsplit(":", 1)[1])

    def write(self, port: int) -> None:
        """Write it with the server at another port."""
        self.value["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{port}"
        self.path.write_text(yaml.safe_dump(self.value))


@pytest.fixture
def kubeconfig(
    control_plane: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> KubeConfig:
    """A copy of the administrator's configuration that `$KUBECONFIG` names."""
    path = tmp_path / "kubeconfig"
    monkeypatch.setenv("KUBECONFIG", str(path))
    return KubeConfig(path, yaml.safe_load(Path(control_plane.kubeconfig).read_text()))


@pytest_asyncio.fixture
async def wire(kubeconfig: KubeConfig) -> AsyncIterator[CutProxy]:
    """Every client made from `$KUBECONFIG` goes through the wire."""
    wire = CutProxy(kubeconfig.port)
    kubeconfig.write(await wire.start())
    yield wire
    await wire.close()


@pytest_asyncio.fixture
async def rig(wire: CutProxy) -> AsyncIterator[Rig]:
    rig = Rig()
    await rig.engine("prefill", "p0")
    await rig.engine("decode", "d0")
    source = parse_source(f"configmap:default/{NAME}")
    assert isinstance(source, ConfigMapSource)
    rig.source = source  # type: ignore[assignment]
    await rig.start()
    yield rig
    await rig.close()


def write(rest: Rest, rig: Rig, version: int, document: str | None = None) -> None:
    group = RouteGroup(0, "r1", tuple(e.route() for e in rig.engines.values()))
    scenario = RouteScenario("chat", SLO, (group,))
    table = RouteTable("shop", version, "tiny", "Reference", (scenario,))
    text = json.dumps(table.to_json()) if document is None else document
    data = {KEY_ROUTES: text}
    body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": NAME}, "data": data}
    answer = rest.call("PUT", PATH, body)
    if answer.code == 404:
        answer = rest.call("POST", PATH.rpartition("/")[0], body)
    assert answer.code in (200, 201), answer.body


def version(rig: Rig) -> int:
    table = rig.gateway.service.table
    return table.version if table else 0


async def test_route_table_is_watched_and_the_last_good_one_kept(
    rest: Rest, rig: Rig, wire: CutProxy, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await rig.request("GET", "/readyz")).status == 503
    await asyncio.to_thread(write, rest, rig, 1)
    await eventually(lambda: version(rig) == 1, "first table")
    assert (await rig.request("GET", "/readyz")).status == 200
    assert (await rig.complete(stream=True)).status == 200

    await asyncio.to_thread(write, rest, rig, 2, "{broken")
    await eventually(lambda: "keeping the last good route table" in caplog.text, "complaint")
    assert (await rig.complete()).status == 200

    wire.cut()
    await asyncio.to_thread(write, rest, rig, 3)
    assert (await rig.complete()).status == 200
    assert (await rig.request("GET", "/readyz")).status == 200
    assert version(rig) == 1
    wire.mend()
    await eventually(lambda: version(rig) == 3, "table after the outage")

    await asyncio.to_thread(rest.call, "DELETE", PATH)
    await eventually(lambda: "deleted; keeping the last good" in caplog.text, "deletion seen")
    assert (await rig.complete()).status == 200
