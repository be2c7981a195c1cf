"""What the bench reads of processes, and that it measures the cache on events that reach it."""

from __future__ import annotations

import os
from typing import Any

import pytest
from benchmarks.parts import operator_cost
from benchmarks.parts.cluster import BenchError

from pdserve.wire import names


def pod(**labels: str) -> dict[str, Any]:
    return {
        "metadata": {"name": "p", "namespace": "default", "uid": "u", "labels": labels},
        "spec": {"containers": [{"name": "engine", "image": "pdserve/engine:0.1.0"}]},
        "status": {"phase": "Running", "podIP": "127.0.0.1"},
    }


async def test_taking_an_event_in_costs_more_than_parsing_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operator_cost, "EVENTS", 500)
    ours = pod(**{names.LABEL_MANAGED_BY: names.FIELD_MANAGER})
    taken, parsed = await operator_cost.event_cpu_us(ours)
    assert taken > parsed > 0


async def test_events_that_do_not_reach_the_cache_stop_the_bench(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(operator_cost, "EVENTS", 50)
    with pytest.raises(BenchError, match="reported 0 of 50 changes"):
        await operator_cost.event_cpu_us(pod())


def test_memory_of_this_process_is_above_a_bare_interpreter_and_below_a_terabyte() -> None:
    assert 5 < operator_cost.rss_mib(os.getpid()) < 1 << 20


def test_cpu_of_this_process_only_rises() -> None:
    before = operator_cost.cpu_ms(os.getpid())
    sum(i * i for i in range(2_000_000))
    assert operator_cost.cpu_ms(os.getpid()) > before > 0
