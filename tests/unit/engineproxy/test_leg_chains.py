"""Which blocks hold the prompt of which leg: events that come early, late, again, or never."""

from __future__ import annotations

import random
from array import array

import orjson
import pytest

from pdserve.engineproxy.kv_events import BlocksCleared, BlocksRemoved, BlocksStored
from pdserve.engineproxy.leg_chains import MOST, MOST_BLOCKS, SECONDS, LegChains
from pdserve.wire.prefixes import PromptBlocks

NAMED = PromptBlocks(array("Q", [101, 102, 103]), 1 / 3.2)
"""Three full blocks of a prompt of 64 tokens: they end at 20, 40 and 60."""
BODY = {"model": "m", "prompt": "p"}


def stored(leg: str, *blocks: int, parent: int | None = None) -> BlocksStored:
    return BlocksStored(blocks, parent, 16, leg)


def held(chains: LegChains) -> set[int]:
    return set(chains.cached.newest(1000))


def begun(leg: str = "leg-1") -> LegChains:
    chains = LegChains("vllm_xargs")
    chains.begin(leg, NAMED, BODY)
    return chains


def test_a_leg_asks_for_a_report_under_its_own_name() -> None:
    client = {**BODY, "session_id": "the client's", "vllm_xargs": {"x": 1}}
    sent = orjson.loads(LegChains("vllm_xargs").begin("leg-1", NAMED, client))
    assert sent == {
        **BODY,
        "session_id": "leg-1",
        "vllm_xargs": {"x": 1, "kv_cache_report_mode": "full"},
    }
    odd = orjson.loads(LegChains("vllm_xargs").begin("leg-1", NAMED, {**BODY, "vllm_xargs": 5}))
    assert odd["vllm_xargs"] == {"kv_cache_report_mode": "full"}


@pytest.mark.parametrize("reply_first", [True, False])
def test_a_chain_counts_when_reply_and_events_are_there(reply_first: bool) -> None:
    chains = begun()
    events = [stored("leg-1", 1, 2), stored("other", 9), stored("leg-1", 3, 4, parent=2)]
    if reply_first:
        chains.answered("leg-1", 64, now=0.0)
        chains.take(events[:2])
        assert not held(chains)
        chains.take(events[2:])
    else:
        chains.take(events)
        assert not held(chains)
        chains.answered("leg-1", 64, now=0.0)
    assert held(chains) == {101, 102, 103}
    chains.take([BlocksRemoved((4,))])
    assert held(chains) == {101, 102, 103}  # it holds the last 4 tokens, in no full block
    chains.take([BlocksRemoved((3,))])
    assert held(chains) == {101, 102}
    chains.take([BlocksRemoved((1,))])
    assert held(chains) == {102}
    chains.take([BlocksCleared()])
    assert not held(chains)


def test_what_was_removed_before_the_reply_is_not_cached() -> None:
    chains = begun()
    chains.take([stored("leg-1", 1, 2, 3, 4), BlocksRemoved((3, 77))])
    chains.answered("leg-1", 64, now=0.0)
    assert held(chains) == {101, 102}
    again = begun()
    again.take([stored("leg-1", 1, 2, 3, 4), BlocksCleared(), stored("leg-1", 3, parent=2)])
    again.answered("leg-1", 64, now=0.0)
    again.expire(SECONDS)
    assert held(again) == {103}


def test_a_computation_that_begins_again_makes_a_new_chain() -> None:
    chains = begun()
    chains.take([stored("leg-1", 1, 2), stored("leg-1", 1), stored("leg-1", 5, 6, 7, parent=1)])
    chains.answered("leg-1", 64, now=0.0)
    assert held(chains) == {101, 102, 103}
    chains.take([BlocksRemoved((2,))])
    assert held(chains) == {101, 102, 103}
    chains.take([BlocksRemoved((5,))])
    assert held(chains) == {101, 103}


def test_events_that_never_come_are_not_awaited_for_ever() -> None:
    chains = begun()
    chains.take([stored("leg-1", 1, 2), stored("leg-1", 4, parent=3)])  # what is between is lost
    chains.answered("leg-1", 64, now=10.0)
    chains.expire(10.0 + SECONDS - 0.1)
    assert not held(chains)
    chains.expire(10.0 + SECONDS)
    assert held(chains) >= {101, 102}
    silent = begun()
    silent.answered("leg-1", 64, now=10.0)
    silent.expire(20.0)
    assert not held(silent)
    assert silent.cached.take_news() == ([], [])


def test_a_leg_that_fails_or_has_no_count_leaves_nothing() -> None:
    chains = begun()
    chains.drop("leg-1")
    chains.take([stored("leg-1", 1, 2, 3, 4)])
    chains.answered("leg-1", 64, now=0.0)
    assert not held(chains)
    chains.begin("leg-2", NAMED, BODY)
    chains.answered("leg-2", 0, now=0.0)
    chains.take([stored("leg-2", 1, 2, 3, 4)])
    chains.expire(100.0)
    assert not held(chains)


def test_hostile_events_cost_bounded_memory() -> None:
    rng = random.Random(1)
    chains = begun()
    last = None
    for _ in range(MOST_BLOCKS // 4096 + 5):
        blocks = tuple(rng.getrandbits(64) for _ in range(4096))
        chains.take([BlocksStored(blocks, last, 16, "leg-1"), BlocksRemoved(blocks)])
        last = blocks[-1]
    chains.answered("leg-1", 1 << 30, now=0.0)
    chains.expire(100.0)
    assert not held(chains)
    for n in range(MOST + 1):
        chains.begin(f"leg-{n}", NAMED, BODY)
    chains.take([stored("leg-0", 1, 2, 3, 4), stored("leg-1", 1, 2, 3, 4)])
    for leg in ("leg-0", "leg-1"):
        chains.answered(leg, 64, now=0.0)
    assert held(chains) == {101, 102, 103}


def test_an_engine_without_arguments_of_its_own_gets_the_session_alone() -> None:
    sent = orjson.loads(LegChains("").begin("leg-1", NAMED, BODY))
    assert sent == {**BODY, "session_id": "leg-1"}
