"""Route sources: files, broken documents, versions that go back."""

import asyncio
from pathlib import Path

import orjson
import pytest
from tests.support.gateway_rig import Rig, eventually

from pdserve.gateway.route_source import ConfigMapSource, FileSource, TableGate, parse_source
from pdserve.terms import Slo
from pdserve.wire.routes import RouteScenario, RouteTable


def document(version: int, service: str = "shop") -> bytes:
    slo = Slo(1.0, 0.2, 0.05, 0.99)
    scenario = RouteScenario("chat", slo, (), prefill_seconds=(0.1, 0.001))
    return orjson.dumps(
        RouteTable(service, version, "tiny", "Reference", (scenario,), {"leaf": 1}).to_json()
    )


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("file:/etc/routes.json", FileSource(Path("/etc/routes.json"))),
        ("configmap:default/shop-routes", ConfigMapSource("default", "shop-routes")),
    ],
)
def test_sources_by_name(text: str, want: object) -> None:
    assert parse_source(text) == want


@pytest.mark.parametrize(
    "text", ["", "file:", "configmap:x", "configmap:/x", "configmap:a/b/c", "etcd:x"]
)
def test_wrong_source_says_what_would_be_right(text: str) -> None:
    with pytest.raises(ValueError, match="must be file:PATH or configmap:NAMESPACE/NAME"):
        parse_source(text)


def test_a_bad_or_older_table_never_replaces_a_good_one(caplog: pytest.LogCaptureFixture) -> None:
    applied: list[RouteTable] = []
    gate = TableGate(applied.append, "here")
    gate.offer(document(3), "uid-1")
    for bad in (b"{", b"{}", b"[]", b'{"schemaVersion": 9}', document(2)):
        gate.offer(bad, "uid-1")
        gate.offer(bad, "uid-1")
    assert [t.version for t in applied] == [3]
    assert "schemaVersion 9, this process reads 1" in caplog.text.replace("'", "")
    assert caplog.text.count("ignoring version 2: 3 is in use") == 1
    gate.offer(document(4), "uid-1")
    gate.offer(document(1), "uid-2")
    assert [t.version for t in applied] == [3, 4, 1]


async def test_file_is_followed(tmp_path: Path) -> None:
    path = tmp_path / "routes.json"
    applied: list[RouteTable] = []
    task = asyncio.create_task(FileSource(path).run(applied.append))
    try:
        await asyncio.sleep(0)
        assert applied == []
        path.write_bytes(document(1))
        await eventually(lambda: len(applied) == 1, "file read")
        path.write_bytes(b"{broken" + document(1))
        other = tmp_path / "new"
        other.write_bytes(document(2))
        other.replace(path)
        await eventually(lambda: applied[-1].version == 2, "newer file read")
        path.unlink()
        path.write_bytes(document(3))
        await eventually(lambda: applied[-1].version == 3, "file back")
    finally:
        task.cancel()
    assert [t.version for t in applied] == [1, 2, 3]


async def test_a_table_for_an_unknown_engine_is_not_served(rig: Rig) -> None:
    await rig.one_group()
    table = rig.gateway.service.table
    assert table is not None
    odd = RouteTable("shop", 9, "tiny", "Zeppelin", table.scenarios)
    rig.gateway.service.apply(odd)
    assert rig.gateway.service.table is table
    assert (await rig.complete()).status == 200


async def test_requests_of_a_scenario_that_left_are_answered(rig: Rig) -> None:
    await rig.one_group()
    rig.engines["p0"].gate = asyncio.Event()
    busy = asyncio.create_task(rig.complete())
    await eventually(lambda: rig.engines["p0"].running == 1, "busy")
    waiting = asyncio.create_task(rig.complete())
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    await eventually(lambda: scheduler.dispatcher.waiting == 1, "waiting")
    rig.gateway.service.apply(RouteTable("shop", 9, "tiny", "Reference", ()))
    refused = await waiting
    assert (refused.status, refused.json["error"]["code"]) == (404, "model_not_found")
    assert (await rig.complete()).status == 404
    rig.engines["p0"].gate.set()
    assert (await busy).status == 200, "a decode of its group pulls what its prefill held"
