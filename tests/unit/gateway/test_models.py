"""Groups of two models behind one scenario: who is asked for which name."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from tests.support import engine_types as e
from tests.support.gateway_rig import SLO, Rig, eventually
from tests.support.stub_engine import StubEngine

from pdserve.gateway.timed_scheduler import TimedScheduler
from pdserve.wire.routes import RouteGroup, RouteScenario, RouteTable


async def two_models(rig: Rig, **former: Any) -> dict[str, list[StubEngine]]:
    """Group 0 serves the former model, group 1 (twice the prefills) the table's own."""
    old = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    new = [await rig.engine("prefill", f"p{i}") for i in (1, 2)]
    new.append(await rig.engine("decode", "d1"))
    await rig.start()
    groups = (
        RouteGroup(0, "r1", tuple(e.route() for e in old), **former),
        RouteGroup(1, "r2", tuple(e.route() for e in new)),
    )
    scenario = RouteScenario("chat", SLO, groups)
    await rig.source.push(RouteTable("shop", 1, "tiny", "Reference", (scenario,)))
    return {"old": old, "new": new}


def asked(engines: list[StubEngine]) -> Counter[str]:
    """Model names of the legs that these engines got."""
    return Counter(body["model"] for e in engines for body in e.seen)


async def test_each_name_reaches_the_groups_that_serve_it(rig: Rig) -> None:
    engines = await two_models(rig, models=("before",), model="before")
    for name in ("tiny", "before"):
        for _ in range(3):
            assert (await rig.complete(model=name)).status == 200
    assert asked(engines["old"]) == {"before": 6}
    assert asked(engines["new"]) == {"tiny": 6}
    listed = (await rig.request("GET", "/v1/models")).json["data"]
    assert [m["id"] for m in listed] == ["before", "tiny"]
    assert (await rig.complete(model="other")).status == 404
    assert await rig.metric("pdserve_gateway_offered_total", scenario="chat") == 6


async def test_a_name_of_both_goes_to_each_by_its_share(rig: Rig) -> None:
    engines = await two_models(rig, models=("tiny",), model="before")
    for _ in range(60):
        assert (await rig.complete()).status == 200
    # Every leg carries the name that its engine knows.
    old, new = asked(engines["old"]), asked(engines["new"])
    assert set(old) == {"before"}
    assert set(new) == {"tiny"}
    assert 0 < old["before"] < new["tiny"]


async def test_a_name_of_both_without_prefills_waits_for_one(rig: Rig) -> None:
    """All of them have left the table: a request is late, and nothing broke inside."""
    decodes = [await rig.engine("decode", f"d{n}") for n in range(2)]
    await rig.start()
    groups = tuple(
        RouteGroup(n, f"r{n}", (decode.route(),), models=("tiny",), model=f"model{n}")
        for n, decode in enumerate(decodes)
    )
    scenario = RouteScenario("chat", replace(SLO, ttft=0.1), groups)
    await rig.source.push(RouteTable("shop", 1, "tiny", "Reference", (scenario,)))
    answer = await rig.complete()
    assert (answer.status, answer.json["error"]["code"]) == (503, "deadline_exceeded")


async def test_the_former_name_ends_with_its_last_group(rig: Rig) -> None:
    engines = await two_models(rig, models=("before",), model="before")
    assert (await rig.complete(model="before")).status == 200
    group = RouteGroup(1, "r2", tuple(e.route() for e in engines["new"]))
    scenario = RouteScenario("chat", SLO, (group,))
    await rig.source.push(RouteTable("shop", 2, "tiny", "Reference", (scenario,)))
    assert (await rig.complete(model="before")).status == 404
    assert (await rig.complete()).status == 200


async def test_what_waits_for_a_former_model_is_served_by_the_next(rig: Rig) -> None:
    """Its groups leave while one request is in prefill and two wait: all three are answered."""
    engines = await two_models(rig, models=("tiny",), model="before")
    old, new = (
        RouteGroup(n, f"r{n}", tuple(e.route() for e in engines[which]), model=model)
        for n, which, model in ((0, "old", "before"), (1, "new", ""))
    )
    scenario = RouteScenario("chat", SLO, (old,))
    await rig.source.push(RouteTable("shop", 2, "tiny", "Reference", (scenario,)))
    rig.engines["p0"].gate = asyncio.Event()
    calls = [asyncio.create_task(rig.complete(stream=n == 1)) for n in range(3)]
    scheduler = rig.gateway.service.scheduler("tiny", {})[0]
    await eventually(lambda: scheduler.dispatcher.waiting == 2, "waiting")
    scenario = RouteScenario("chat", SLO, (new,))
    await rig.source.push(RouteTable("shop", 3, "tiny", "Reference", (scenario,)))
    rig.engines["p0"].gate.set()
    assert [(await call).status for call in calls] == [200, 200, 200]
    assert asked(engines["old"]) == {"before": 2}
    assert asked(engines["new"]) == {"tiny": 4}


async def test_a_model_of_any_printable_name_is_listed_and_served(rig: Rig) -> None:
    engines = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    name = "模型/999 NVIDIA@v2+#?"
    groups = (RouteGroup(0, "r1", tuple(e.route() for e in engines)),)
    scenario = RouteScenario("chat", SLO, groups)
    await rig.source.push(RouteTable("shop", 1, name, "Reference", (scenario,)))
    assert (await rig.complete(model=name)).status == 200
    one = await rig.request("GET", f"/v1/models/{quote(name, safe='/')}")
    assert (one.status, one.json["id"]) == (200, name)


async def test_groups_of_an_unknown_engine_get_no_requests_and_stop_no_others(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    """A spec may name what no adapter here serves: the table still moves with the old groups."""
    engines = await two_models(rig, flow="Nothing")
    for _ in range(4):
        assert (await rig.complete()).status == 200
    assert asked(engines["old"]) == {}
    assert asked(engines["new"]) == {"tiny": 8}
    assert "engine type 'Nothing' is not known here (known: " in caplog.text
    # The table's own type is the unknown one, and group 0 goes on under its own.
    groups = tuple(
        RouteGroup(i, "r", tuple(e.route() for e in engines[name]), flow=flow)
        for i, (name, flow) in enumerate((("old", "Reference"), ("new", "")))
    )
    scenario = RouteScenario("chat", SLO, groups)
    await rig.source.push(RouteTable("shop", 2, "tiny", "Nothing", (scenario,)))
    assert (await rig.complete()).status == 200
    assert asked(engines["old"]) == {"tiny": 2}


async def test_a_table_of_unknown_engines_alone_is_not_taken(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    await rig.one_group()
    rig.gateway.service.apply(RouteTable("shop", 9, "tiny", "Nothing", (
        RouteScenario("chat", SLO, ()),
    )))  # fmt: skip
    assert (await rig.complete()).status == 200
    assert "route table 9: keeping the last good table" in caplog.text


async def test_two_engines_of_one_model_share_its_requests_and_keep_their_lanes(
    rig: Rig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = "from pdserve.engines.pull_flow import PullFlow\nFLOW = PullFlow(lease_seconds=5.0)\n"
    e.package(tmp_path, "acme_second", flow=flow)
    e.install(monkeypatch, e.announce(tmp_path, {"Second": "acme_second"}))
    try:
        engines = await two_models(rig, flow="Second")
        for _ in range(60):
            assert (await rig.complete()).status == 200
        assert set(asked(engines["old"])) == set(asked(engines["new"])) == {"tiny"}
        service = rig.gateway.service

        def schedulers() -> set[TimedScheduler]:
            """Those that are drawn for its requests, by slots and at random."""
            return {service.scheduler("tiny", {})[0] for _ in range(100)}

        before = schedulers()
        assert len(before) == 2
        service.apply(service.loaded())
        assert schedulers() == before
    finally:
        e.uninstall(tmp_path)


async def test_models_say_how_many_tokens_they_take(rig: Rig) -> None:
    engines = [await rig.engine("prefill", "p0"), await rig.engine("decode", "d0")]
    await rig.start()
    group = RouteGroup(0, "r1", tuple(e.route() for e in engines))
    tight = RouteScenario("chat", SLO, (group,), headers={"x-app": "chat"}, max_model_len=4096)
    wide = RouteScenario("code", SLO, (group,), max_model_len=32768)
    unknown = RouteScenario("other", SLO, (group,), models=("other",))
    await rig.source.push(RouteTable("shop", 1, "tiny", "Reference", (tight, wide, unknown)))
    listed = (await rig.request("GET", "/v1/models")).json["data"]
    assert {m["id"]: m.get("max_model_len") for m in listed} == {"tiny": 4096, "other": None}
    one = (await rig.request("GET", "/v1/models/tiny")).json
    assert (one["id"], one["max_model_len"]) == ("tiny", 4096)
