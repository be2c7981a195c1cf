"""Who holds which blocks: against a model that looks at all, and at its bounds."""

from __future__ import annotations

import random
import tracemalloc
from collections.abc import Sequence

import pytest

from pdserve.forwarding.prefix.index import LEAST, PrefixIndex


def chain(*steps: int) -> list[int]:
    """Digests of a prompt: each stands for all steps so far."""
    return [hash(steps[: n + 1]) & (1 << 64) - 1 for n in range(len(steps))]


def found(
    index: PrefixIndex[str], digests: Sequence[int], holders: Sequence[str]
) -> dict[str, int]:
    hits = index.find(digests)
    return {h: n for h in holders if (n := index.blocks_at(hits, h))}


def test_lookups_agree_with_sets_of_blocks() -> None:
    rng = random.Random(3)
    names = [f"p{n}" for n in range(70)]
    index: PrefixIndex[str] = PrefixIndex(1 << 20)
    held: dict[str, set[int]] = {}
    reports: set[str] = set()
    for _ in range(3000):
        prompt = chain(*(rng.randrange(3) for _ in range(rng.randrange(1, 9))))
        action = rng.randrange(20)
        if action == 0:
            now = rng.sample(names, rng.randrange(1, len(names)))
            index.follow(now)
            held = {name: held.get(name, set()) for name in now}
            reports &= set(now)
        elif action == 1 and held:
            name = rng.choice(list(held))
            index.report(name)
            held[name] = set()
            reports.add(name)
        elif action == 3 and held:
            name = rng.choice(list(held))
            index.silent(name)
            reports.discard(name)
        elif action == 4 and held:
            name = rng.choice(list(held))
            index.reported(name, reversed(prompt))
            if name in reports:
                held[name] |= set(prompt)
        elif action == 2 and held:
            name = rng.choice(list(held))
            index.removed(name, prompt)
            held[name] -= set(prompt)
        else:
            name = rng.choice(names)
            index.stored(name, prompt)
            if name in held:
                held[name] |= set(prompt)
        assert index.reporting == len(reports)
        assert {n for n in names if index.reports(n)} == reports
        want = {
            name: n
            for name, blocks in held.items()
            if (n := next((i for i, d in enumerate(prompt) if d not in blocks), len(prompt)))
        }
        assert found(index, prompt, names) == want
        best = index.best(index.find(prompt), 4, rng.random)
        assert len(best) == min(4, len(want)) == len({h for h, _ in best})
        assert [n for _, n in best] == sorted(want.values(), reverse=True)[:4]
        assert all(want[h] == n for h, n in best)
    assert index.size == sum(map(len, held.values()))


def test_of_equal_holders_any_is_taken() -> None:
    names = [f"p{n}" for n in range(40)]
    index: PrefixIndex[str] = PrefixIndex()
    index.follow(names)
    for name in names:
        index.stored(name, chain(1, 2))
    rng = random.Random(5)
    taken = {h for _ in range(400) for h, _ in index.best(index.find(chain(1, 2)), 2, rng.random)}
    assert taken == set(names)


def test_the_oldest_ends_go_first_and_a_shared_beginning_stays() -> None:
    index: PrefixIndex[str] = PrefixIndex(6)
    index.follow(["p"])
    index.stored("p", chain(1, 2, 3))
    index.stored("p", chain(1, 2, 4))
    index.stored("p", chain(7, 8, 9))  # one more than the bound: the end of the oldest goes
    assert index.size == 6
    assert found(index, chain(1, 2, 3), ["p"]) == {"p": 2}
    assert found(index, chain(1, 2, 4), ["p"]) == {"p": 3}


def test_a_number_that_is_used_again_has_none_of_its_predecessors_blocks() -> None:
    index: PrefixIndex[str] = PrefixIndex()
    index.follow(["a", "b"])
    index.stored("a", chain(1, 2))
    index.stored("b", chain(1))
    index.follow(["b", "c"])
    assert found(index, chain(1, 2), ["a", "b", "c"]) == {"b": 1}
    index.stored("a", chain(1, 2))
    assert found(index, chain(1, 2), ["a", "b", "c"]) == {"b": 1}


def test_an_engine_that_keeps_less_narrows_its_share_and_one_that_keeps_all_widens_it() -> None:
    index: PrefixIndex[str] = PrefixIndex(100_000)
    index.follow(["p"])
    for n in range(1000):
        index.stored("p", chain(n, n))
    for _ in range(20):
        index.proved("p", 10, 0)
    assert LEAST <= index.size < 300
    bound = index.size
    for n in range(1000):
        index.stored("p", chain(n, n))
    assert index.size == bound
    for _ in range(100):
        index.proved("p", 10, 10)
    for n in range(1000):
        index.stored("p", chain(n, n))
    assert bound + 900 <= index.size <= bound + 1000
    for _ in range(1000):
        index.proved("p", 10, 0)
    index.stored("p", chain(*range(200)))
    assert index.size == LEAST


@pytest.mark.parametrize("prefills", [1, 8, 200])
def test_hostile_prompts_cannot_make_it_grow(prefills: int) -> None:
    """Each prompt is new and as long as can be."""
    rng = random.Random(1)
    names = [f"p{n}" for n in range(prefills)]
    tracemalloc.start()
    index: PrefixIndex[str] = PrefixIndex(8192)
    index.follow(names)
    for turn in range(60):
        index.stored(names[turn % prefills], [rng.getrandbits(64) for _ in range(2048)])
        assert index.size <= 8192
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert memory < 8192 * 400
    index.follow(names, 1024)
    assert index.size <= 1024
