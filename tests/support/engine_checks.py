"""Running the checks of `pdserve engine check` against instances of a test."""

from __future__ import annotations

from typing import Any

from tests.own_engine.own_engine import OwnEngine

from pdserve.enginecheck import suite
from pdserve.enginecheck.probe import Probe
from pdserve.enginecheck.subject import CheckedInstance, CheckSubject
from pdserve.terms import Role

SECONDS = 30.0
"""Bound of one reply: long beside what the engines of these tests need."""


def target(
    url: str, role: Role, name: str, transfer: str, token: str, seconds: float = SECONDS
) -> CheckedInstance:
    return CheckedInstance(name, role, transfer, Probe(url, token, seconds))


def own_target(
    engine: OwnEngine, token: str = "secret", seconds: float = SECONDS
) -> CheckedInstance:
    role: Role = "prefill" if engine.role == "prefill" else "decode"
    url, transfer = f"http://127.0.0.1:{engine.port}", f"127.0.0.1:{engine.kv_port}"
    return target(url, role, engine.name, transfer, token, seconds)


async def results(
    subject: CheckSubject, *, drain: bool = True, until: str = ""
) -> dict[tuple[str, str], Any]:
    """Results by check and instance, up to the first that fails under the name `until`."""
    found = {}
    async for result in suite.run(subject, drain=drain):
        found[result.name, result.where] = result
        if result.name == until and result.outcome == "fail":
            break
    return found


def failed(found: dict[tuple[str, str], Any]) -> dict[str, str]:
    """What the failed checks say, by check."""
    return {name: r.says for (name, _), r in found.items() if r.outcome == "fail"}


def skipped(found: dict[tuple[str, str], Any]) -> set[str]:
    return {name for (name, _), r in found.items() if r.outcome == "skip"}
