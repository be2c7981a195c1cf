"""Whose request goes first when more come than prefills take, with real sockets and API keys."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest_asyncio
from tests.support.gateway_rig import Answer, Rig, eventually

FLOOD, OTHER = {"authorization": "Bearer flood"}, {"x-api-key": "other"}


@pytest_asyncio.fixture
async def crowded(rig: Rig, tmp_path: Path) -> Rig:
    """One prefill with one slot, which the client `flood` has had all the time so far."""
    (tmp_path / "keys").write_text("flood\nother\n")
    await rig.one_group(keys=tmp_path, decodes=2)
    for _ in range(3):
        assert (await rig.complete(FLOOD)).status == 200
    rig.engines["p0"].gate = asyncio.Event()
    return rig


async def waiting(rig: Rig, count: int) -> None:
    dispatcher = rig.gateway.service.scheduler("tiny", {})[0].dispatcher
    await eventually(lambda: dispatcher.waiting == count, f"{count} requests wait")


async def send(rig: Rig, *asked: tuple[dict[str, str], dict[str, str]]) -> list[str]:
    """Prompts in the order in which the prefill got them; requests are sent in the given order."""
    prefill = rig.engines["p0"]
    before, tasks = len(prefill.seen), list[asyncio.Task[Answer]]()
    for number, (headers, body) in enumerate(asked):
        tasks.append(asyncio.create_task(rig.complete(headers, prompt=f"n{number}", **body)))
        if number == 0:
            await eventually(lambda: prefill.running == 1, "the first is at the prefill")
        else:
            await waiting(rig, number)
    assert prefill.gate is not None
    prefill.gate.set()
    assert {answer.status for answer in await asyncio.gather(*tasks)} == {200}
    found = [str(body["prompt"]) for body in prefill.seen[before:]]
    return list(dict.fromkeys(found))


async def test_a_client_that_had_nothing_goes_before_one_that_had_all(crowded: Rig) -> None:
    order = await send(crowded, (FLOOD, {}), (FLOOD, {}), (FLOOD, {}), (OTHER, {}), (FLOOD, {}))
    assert order == ["n0", "n3", "n1", "n2", "n4"]


async def test_flex_requests_come_last(crowded: Rig) -> None:
    flex = {"service_tier": "flex"}
    order = await send(crowded, (FLOOD, {}), (OTHER, flex), (FLOOD, flex), (FLOOD, {}))
    assert order == ["n0", "n3", "n1", "n2"]


async def test_without_keys_all_are_one_client(rig: Rig) -> None:
    await rig.one_group(decodes=2)
    assert (await rig.complete(FLOOD)).status == 200
    rig.engines["p0"].gate = asyncio.Event()
    assert await send(rig, (FLOOD, {}), (FLOOD, {}), (OTHER, {})) == ["n0", "n1", "n2"]


async def test_a_full_room_sheds_flex_requests_and_says_so(rig: Rig) -> None:
    await rig.one_group(room_limit=2)
    prefill = rig.engines["p0"]
    prefill.gate = asyncio.Event()
    first = asyncio.create_task(rig.complete())
    await eventually(lambda: prefill.running == 1, "the first is at the prefill")
    shed = [asyncio.create_task(rig.complete(service_tier="flex")) for _ in range(2)]
    await waiting(rig, 2)
    assert (await rig.complete(service_tier="flex")).json["error"]["code"] == "waiting_room_full"
    taken = asyncio.create_task(rig.complete())
    done, _ = await asyncio.wait(shed, return_when=asyncio.FIRST_COMPLETED)
    (answer,) = (task.result() for task in done)
    assert (answer.status, answer.json["error"]["code"]) == (503, "shed")
    assert int(answer.headers["retry-after"]) >= 1
    prefill.gate.set()
    others = await asyncio.gather(first, taken, *(t for t in shed if t not in done))
    assert {a.status for a in others} == {200}
