"""The engine proxy gives an engine the whole contract: the checks over vLLM stubs."""

from __future__ import annotations

import pytest
from tests.support.engine_checks import failed, results, skipped, target
from tests.support.proxy_rig import TOKEN, ProxyRig

from pdserve.enginecheck import suite
from pdserve.enginecheck.subject import CheckSubject


@pytest.mark.parametrize(("type_name", "rooms"), [("vLLM", False), ("SGLang", True)])
async def test_the_proxy_keeps_every_rule(type_name: str, rooms: bool) -> None:
    made = ProxyRig(rooms=rooms)
    try:
        for role in ("prefill", "decode"):
            instance = await made.add(role, f"{role[0]}0", slots=4)  # type: ignore[arg-type]
            instance.stub.token_seconds = 0.005
        targets = tuple(
            target(i.url, i.role, i.name, i.transfer, TOKEN)
            for i in made.instances.values()
        )  # fmt: skip
        found = await results(CheckSubject(type_name, targets, tokens=10_000))
    finally:
        await made.close()
    assert failed(found) == {}
    assert {name for name, _ in found} == set(suite.NAMES)
    pulls = {"prefill", "release", "handoff", "kept-kv", "lost-kv", "refusal-decode"}
    assert skipped(found) <= {"abort-prefill", *(pulls if rooms else ())}, skipped(found)
