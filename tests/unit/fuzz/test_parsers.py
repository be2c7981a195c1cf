"""Parsers against a few thousand odd inputs, and against every input that once broke one."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from tests.fuzz.__main__ import KEPT
from tests.fuzz.check import check, check_all, check_memory
from tests.fuzz.mutate import mutated
from tests.fuzz.target import Target
from tests.fuzz.targets import targets

ALL = {target.name: target for target in targets()}


@pytest.mark.parametrize("name", ALL)
def test_odd_inputs_are_answered_or_refused(name: str) -> None:
    rng = random.Random(name)
    target = ALL[name]
    inputs = [mutated(target.seeds, rng) for _ in range(500)]
    assert not check_all(target, inputs)


@pytest.mark.parametrize("name", ALL)
def test_good_inputs_are_read(name: str) -> None:
    """A parser that refuses its own examples would look safe."""
    for data in ALL[name].seeds:
        try:
            ALL[name].parse(data)
        except ALL[name].errors as error:
            if name not in NOT_WHOLE:
                raise AssertionError(f"{name} refuses {data!r}") from error


NOT_WHOLE = {"groups.pod", "ratio.profile", "topology.node", "gateway.sse", "telemetry.time"}
"""Parsers whose examples are also parts of what they read."""


@pytest.mark.parametrize(
    "path", sorted(KEPT.glob("*/*")), ids=lambda p: f"{p.parent.name}-{p.name}"
)
def test_kept_inputs_stay_harmless(path: Path) -> None:
    target, data = ALL[path.parent.name], path.read_bytes()
    assert check(target, data) is None
    assert check_memory(target, data) is None


def _explode(data: bytes) -> object:
    if data == b"raise":
        raise RecursionError("deep")
    if data == b"slow":
        return sum(i * i for i in range(3_000_000))
    return bytearray(120 << 20) if data == b"big" else None


@pytest.mark.parametrize("data", [b"raise", b"slow", b"big"])
def test_the_check_finds_what_it_looks_for(data: bytes) -> None:
    target = Target("bad", _explode, (ValueError,), (b"x",))
    assert check(target, b"harmless") is None
    found = check_memory(target, data) if data == b"big" else check(target, data)
    assert found is not None
    assert found.data == data
