"""An engine written from the page keeps the contract; each rule, broken, is seen by its check."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest
from tests.own_engine import own_engine
from tests.own_engine.own_engine import OwnEngine
from tests.support import broken_engines as b
from tests.support.engine_checks import SECONDS, failed, own_target, results, skipped
from tests.support.engines import fresh_host, until

from pdserve.cli.main import main
from pdserve.enginecheck import suite
from pdserve.enginecheck.subject import CheckSubject
from pdserve.engines import registry
from pdserve.wire.names import PORT_HTTP

PROGRAM = own_engine.__file__


@contextlib.asynccontextmanager
async def pair(
    type_name: str,
    prefill: type[OwnEngine] = OwnEngine,
    decode: type[OwnEngine] = OwnEngine,
    seconds: float = SECONDS,
) -> AsyncIterator[CheckSubject]:
    engines = [prefill("prefill", "p0"), decode("decode", "d0")]
    for engine in engines:
        await engine.start()
    try:
        yield CheckSubject(
            type_name, tuple(own_target(e, seconds=seconds) for e in engines), tokens=5000
        )
    finally:
        for engine in engines:
            await engine.stop()


async def test_the_engine_of_the_page_keeps_every_rule(own_type: str) -> None:
    async with pair(own_type) as subject:
        found = await results(subject)
    assert failed(found) == {}
    assert {name for name, _ in found} == set(suite.NAMES)
    assert skipped(found) <= {"abort-prefill"}, skipped(found)


@pytest.mark.parametrize("role", ["prefill", "decode"])
async def test_one_instance_gets_what_its_role_allows(own_type: str, role: str) -> None:
    engine = await OwnEngine(role, "x0").start()
    try:
        found = await results(CheckSubject(own_type, (own_target(engine),)))
    finally:
        await engine.stop()
    assert failed(found) == {}
    of_decode = {"completion", "stream", "handoff", "kept-kv", "lost-kv", "refusal-decode"}
    assert of_decode <= skipped(found)
    assert ("prefill" in skipped(found)) is (role == "decode")
    said = {r.says for r in found.values() if r.outcome == "skip"}
    assert all("URL" in says or "client could go" in says for says in said), said


BROKEN = [
    ("health", b.at("/health", 500), None, "answer 200 while the process is up"),
    ("models", b.at("/v1/models", 200, {"data": []}), None, "lists no model"),
    ("control", b.ForgetsCredentials, None, "without the credential gets 200"),
    ("control", b.TakesAnyTable, None, "does not name it gets 200"),
    ("control", b.TakesOlderTables, None, "keep the newest"),
    ("control", b.at("/pdserve/v1/links", 200, {"version": "x"}), None, "version"),
    ("ready", None, b.NeverLinks, "verify a link to each peer"),
    ("ready", b.at("/readyz", 503), None, "answers 503"),
    ("metrics", b.at("/metrics", 200, "x 1\n"), None, "counts as missing"),
    ("metrics", b.at("/metrics", 200, "own_slots many words\n"), None, "is no sample"),
    ("credentials", b.NeedsNoneForLegs, None, "answer 401"),
    ("errors", b.FailsOnNonsense, None, "answer 400"),
    ("errors", b.SaysNothingOfNonsense, None, '{"error": {"message"'),
    ("deadline", b.IgnoresDeadlines, None, "reason deadline"),
    ("deadline", b.HasNoHints, None, "without hints"),
    ("prefill", b.HoldsNothing, None, "no kv_transfer_params"),
    ("prefill", b.CountsNothing, None, "usage.prompt_tokens"),
    ("hints", b.AlwaysFree, None, "a slot is taken until"),
    ("hints", b.OneEpoch, None, "raise it with each change"),
    ("release", b.KeepsReleased, None, "stays taken"),
    ("refusal-prefill", b.Queues, None, "do not queue"),
    ("refusal-prefill", b.OtherReason, None, "say full"),
    ("abort-prefill", b.GoesOnAlone, None, "stays taken after its client went away"),
    ("completion", None, b.CountsNothing, "completion_tokens"),
    ("stream", None, b.EndsWithoutDone, "[DONE]"),
    ("stream", None, b.StreamsWithoutUsage, "usage"),
    ("stream", None, b.TwoReasons, "finish_reasons: give one"),
    ("handoff", b.NeverHandsOver, None, "free it when the KV was pulled"),
    ("kept-kv", None, b.PullsFirst, "a refusal must leave the KV"),
    ("kept-kv", None, b.IgnoresDeadlines, "refuse it before the KV is touched"),
    ("lost-kv", None, b.InventsKv, "x-pdserve-reject: kv_failed"),
    ("lost-kv", None, b.LosesKvLoudly, "x-pdserve-reject: kv_failed"),
    ("refusal-decode", None, b.TakesMore, "answer 503 with x-pdserve-reject: decode_full"),
    ("refusal-decode", None, b.OtherReason, "say decode_full"),
    ("refusal-decode", None, b.Queues, "no queue"),
    ("abort-decode", None, b.GoesOnAlone, "end a request when its connection closes"),
    ("drain", b.TakesWhileDraining, None, "while it drains"),
    ("drain", None, b.CutsAtDrain, "breaks off"),
    ("drain", b.NeverDrained, None, "count down to 0"),
    ("drain", None, b.SaysThatNothingRuns, "while a stream does"),
    ("drain", b.ReadyWhileDraining, None, "is not ready"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("check", "prefill", "decode", "says"),
    BROKEN,
    ids=lambda v: getattr(v, "__name__", v if isinstance(v, str) and " " not in v else None),
)
async def test_a_broken_rule_is_seen(
    own_type: str,
    monkeypatch: pytest.MonkeyPatch,
    check: str,
    prefill: type[OwnEngine] | None,
    decode: type[OwnEngine] | None,
    says: str,
) -> None:
    if check == "ready":
        monkeypatch.setattr("pdserve.enginecheck.instance_checks.READY_SECONDS", 0.2)
    monkeypatch.setattr("pdserve.enginecheck.leg_checks.FREE_SECONDS", 4.0)
    silent = {b.Queues, b.NeverDrained} & {prefill, decode}
    seconds = 8.0 if silent else SECONDS
    async with pair(own_type, prefill or OwnEngine, decode or OwnEngine, seconds) as subject:
        found = failed(await results(subject, until=check))
    assert check in found, found
    assert says in found[check]


async def test_a_broken_adapter_is_seen(own_type: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pdserve.engines.testing.LEAST_LEASE", 1000.0)
    async with pair(own_type) as subject:
        found = failed(await results(subject, drain=False))
    assert set(found) == {"adapter"}
    assert "lease_seconds" in found["adapter"]


async def test_an_adapter_that_raises_ends_no_run(
    own_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raises(_: object, headers: object) -> None:
        raise KeyError("nothing")

    monkeypatch.setattr(type(registry.flow(own_type)), "read_hint", raises)
    async with pair(own_type) as subject:
        found = await results(subject, drain=False)
    assert "the type's adapter raises KeyError: 'nothing'" in failed(found)["deadline"]
    assert {name for name, _ in found} == set(suite.NAMES) - {"drain"}


def test_every_check_has_a_row() -> None:
    assert {check for check, *_ in BROKEN} | {"adapter"} == set(suite.NAMES)


async def test_its_program_is_checked_by_the_command(
    own_type: str, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two processes, started as its text says; URLs and type are all that the command needs."""
    monkeypatch.delenv("PDSERVE_TOKEN", raising=False)
    hosts, processes = [fresh_host(), fresh_host()], []
    try:
        for host, role in zip(hosts, ("prefill", "decode"), strict=True):
            env = {"PDSERVE_ROLE": role, "PDSERVE_INSTANCE": f"{role[0]}0"}
            processes.append(
                await asyncio.create_subprocess_exec(
                    sys.executable, PROGRAM, host, env={**os.environ, **env}
                )
            )
        for host in hosts:
            await until(lambda h=host: answers(h), f"{host} listens")  # type: ignore[misc]
        urls = [f"http://{host}:{PORT_HTTP}" for host in hosts]
        words = ["engine", "check", "--type", own_type, "--tokens", "5000", *urls]
        status = await asyncio.to_thread(main, words)
    finally:
        for process in processes:
            process.kill()
            await process.wait()
    out = capsys.readouterr().out
    assert status == 0, out
    # Without PDSERVE_TOKEN no path needs a credential, and the check says so.
    skips = {line.split()[2] for line in out.splitlines() if line.startswith("skip")}
    assert {"credentials"} <= skips <= {"credentials", "abort-prefill"}


async def answers(host: str) -> bool:
    with contextlib.suppress(OSError):
        _, writer = await asyncio.open_connection(host, PORT_HTTP)
        writer.close()
        return True
    return False
