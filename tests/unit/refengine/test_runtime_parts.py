"""The pure parts of the runtime: blocks, leases, slots, batches, predictions, pacing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.refengine.config import parse
from pdserve.refengine.kv.leases import Leases
from pdserve.refengine.kv.payload import Payload
from pdserve.refengine.kv.pool import BlockPool, OutOfBlocksError, prompt_hashes
from pdserve.refengine.kv.recent_pulls import RecentPulls
from pdserve.refengine.runtime.estimates import Estimates
from pdserve.refengine.runtime.pacing import Pacer, ProfileError, load_profile
from pdserve.refengine.runtime.predict import PrefillTime
from pdserve.refengine.runtime.slots import Slots

# --- blocks -----------------------------------------------------------------------------------


def test_blocks_are_unique_until_released() -> None:
    pool = BlockPool(11, reuse=False)
    first, second = pool.allocate(6), pool.allocate(4)
    assert sorted(first + second) == list(range(1, 11))  # 0 is never handed out.
    with pytest.raises(OutOfBlocksError, match="1 KV blocks wanted, 0 free"):
        pool.allocate(1)
    pool.release(first)
    assert pool.available == 6
    with pytest.raises(ValueError, match="released more often"):
        pool.release(first[:1])


def test_prefixes_are_found_by_all_tokens_up_to_the_block_end() -> None:
    pool = BlockPool(20, reuse=True)
    prompt = list(range(100))
    blocks = pool.allocate(4)
    pool.publish(blocks, prompt_hashes(prompt))
    pool.release(blocks)
    assert pool.match(prompt_hashes(prompt[:70])) == blocks[:2]
    assert pool.match(prompt_hashes([9, *prompt])) == []
    assert pool.match(prompt_hashes(prompt[:32] + [7] * 64)) == blocks[:1]


def test_cached_blocks_are_recycled_oldest_chain_end_first() -> None:
    pool = BlockPool(5, reuse=True)
    old, new = pool.allocate(2), pool.allocate(2)
    hashes = {i: prompt_hashes([i] * 64) for i in (1, 2)}
    pool.publish(old, hashes[1])
    pool.publish(new, hashes[2])
    pool.release(old)
    pool.release(new)
    assert pool.allocate(1) == [old[1]]
    assert pool.match(hashes[1]) == [old[0]]
    assert pool.match(hashes[2]) == new


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=60))
def test_pool_never_loses_or_doubles_a_block(steps: list[tuple[int, int]]) -> None:
    pool = BlockPool(13, reuse=True)
    held: list[list[int]] = []
    for kind, size in steps:
        tokens = [kind] * (32 * size)
        if kind < 3:
            hashes = prompt_hashes(tokens)
            cached = pool.match(hashes)
            try:
                blocks = cached + pool.allocate(size - len(cached))
            except OutOfBlocksError:
                pool.release(cached)
                continue
            pool.publish(blocks, hashes)
            held.append(blocks)
        elif held:
            pool.release(held.pop(size % len(held)))
        assert pool.used == len({b for blocks in held for b in blocks})
        assert 0 not in {b for blocks in held for b in blocks}
    for blocks in held:
        pool.release(blocks)
    assert pool.available == pool.total == 12


# --- leases -----------------------------------------------------------------------------------

KV = Payload.of(3, memoryview(b"abc"))


class Ended:
    def __init__(self) -> None:
        self.seen: list[tuple[str, str]] = []

    def __call__(self, request: str, held: Any, ending: str) -> None:
        self.seen.append((request, ending))


def test_a_lease_ends_once() -> None:
    ended = Ended()
    leases = Leases(30, 10, ended)
    leases.hold("a", KV, now=0)
    leases.hold("b", KV, now=1)
    with pytest.raises(ValueError, match="held already"):
        leases.hold("a", KV, now=2)
    assert leases.next_expiry() == 30
    leases.expire(29.9)
    assert ended.seen == []
    leases.expire(30)
    assert leases.end("b", "released") and not leases.end("b", "pulled")
    assert ended.seen == [("a", "expired"), ("b", "released")]


def test_a_running_pull_keeps_the_lease_but_not_for_ever() -> None:
    ended = Ended()
    leases = Leases(30, 10, ended)
    leases.hold("a", KV, now=0)
    assert leases.begin_pull("a", 29) is KV
    leases.expire(38)
    assert leases.next_expiry() == 39 and ended.seen == []
    leases.pull_failed("a")
    leases.expire(38)
    assert ended.seen == [("a", "expired")]
    assert leases.begin_pull("a", 39) is None


# --- slots ------------------------------------------------------------------------------------


def test_slots_and_epoch() -> None:
    slots = Slots(2)
    assert [slots.take() for _ in range(3)] == [True, True, False]
    hint = slots.hint(0.0301)
    assert dict(hint.headers()) == {
        b"x-pdserve-slots": b"0/2",
        b"x-pdserve-free-in-ms": b"30",
        b"x-pdserve-epoch": b"2",
    }
    slots.give_back()
    assert (slots.hint(9).free_in_ms, slots.hint(9).epoch) == (0, 3)
    slots.give_back()
    with pytest.raises(ValueError, match="not taken"):
        slots.give_back()


# --- prediction -------------------------------------------------------------------------------


def test_prefill_time_is_learnt() -> None:
    model = PrefillTime()
    assert model.seconds(100) == 0
    model.add(100, 0.02)
    assert model.seconds(50) == pytest.approx(0.01)
    for tokens in (10, 200, 1000, 400):
        model.add(tokens, 0.005 + tokens * 1e-4)
    for _ in range(200):
        model.add(300, 0.035)
        model.add(600, 0.065)
    assert model.seconds(1000) == pytest.approx(0.105, rel=0.02)


def test_a_prediction_that_refuses_is_tried_out_now_and_then() -> None:
    estimates = Estimates(None)
    assert [estimates.tries_out(t) for t in (0.0, 1.0, 4.9, 5.0, 6.0, 10.0)] == [
        True, False, False, True, False, True,
    ]  # fmt: skip
    assert not Estimates(pacer()).tries_out(0.0)  # a profile is the truth


# --- pacing -----------------------------------------------------------------------------------


def pacer(factor: float = 1.0) -> Pacer:
    return Pacer(load_profile("demo-small"), factor)


def test_profile_formulas() -> None:
    profile = load_profile("demo-small")
    assert profile.prefill_seconds([(0, 100), (0, 50)]) == pytest.approx(
        0.02 + 0.0005 * 150 + 1e-7 * (100**2 + 50**2)
    )
    whole = profile.prefill_seconds([(0, 300)]) - profile.a
    parts = sum(profile.prefill_seconds([s]) - profile.a for s in ((0, 100), (100, 300)))
    assert whole == pytest.approx(parts)
    assert profile.decode_seconds(4, 1000) == pytest.approx(0.025 + 0.004 + 0.001)


def test_h100_preset_is_near_its_source() -> None:
    """splitwise-sim perf_model.csv, llama2-70b, H100, TP 8; milliseconds."""
    profile = load_profile("h100-llama2-70b-tp8")
    for tokens, ms in ((512, 53), (1024, 78), (2048, 137), (4096, 390), (8192, 845)):
        assert profile.prefill_seconds([(0, tokens)]) * 1000 == pytest.approx(ms, rel=0.16)
    for batch, expected in ((1, 29.8), (8, 32.5), (32, 38.6), (64, 50.2)):
        got = profile.decode_seconds(batch, 512 * batch) * 1000
        assert got == pytest.approx(expected, rel=0.03)


def test_steps_that_follow_at_once_do_not_drift() -> None:
    clock, now = pacer(2.0), 100.0
    for _ in range(500):
        due = clock.end(clock.begin(now), computed=0.004, seconds=0.05)
        now = due + 0.0007  # The timer is a little late, every time.
        clock.delivered(now)
    assert now == pytest.approx(100 + 500 * 0.1 + 0.0007)
    assert (clock.late, clock.valid) == (0, True)


def test_a_pause_starts_a_new_chain() -> None:
    clock = pacer()
    assert clock.end(clock.begin(10.0), 0.001, 0.05) == pytest.approx(10.05)
    assert clock.begin(10.2) == 10.2


def test_late_steps_invalidate() -> None:
    clock = pacer()
    for number in range(200):
        due = clock.end(clock.begin(float(number)), 0.01, 0.05)
        clock.delivered(due + (0.004 if number in (50, 60, 70) else 0.0029))
    assert (clock.late, clock.steps, clock.valid) == (3, 200, False)
    assert clock.report()["valid"] is False


def test_a_few_late_steps_are_tolerated() -> None:
    clock = pacer()
    for number in range(400):
        due = clock.end(clock.begin(float(number)), 0.01, 0.05)
        clock.delivered(due + (0.1 if number % 100 == 7 else 0.0))
    assert (clock.late, clock.valid) == (4, True)


def test_too_little_headroom_invalidates() -> None:
    clock = pacer()
    for number in range(10):
        clock.delivered(clock.end(clock.begin(number), 0.04, 0.05))
    assert clock.late == 0 and not clock.valid
    assert clock.report()["computeShare"] == 0.8


def test_transfers_share_the_link() -> None:
    clock = pacer(2.0)
    one = 2 * 500 * 2048 / 50e6
    assert clock.transfer_end(1.0, 500) == pytest.approx(1 + one)
    assert clock.transfer_end(1.0, 500) == pytest.approx(1 + 2 * one)
    assert clock.transfer_end(9.0, 500) == pytest.approx(9 + one)


GOOD = {
    "prefill": {"a": 0, "b": 0, "c": 0},
    "decode": {"d": 0, "e": 0, "f": 0},
    "kv": {"bytesPerToken": 1, "linkBytesPerSecond": 1},
}
BAD_PROFILES: dict[str, tuple[Any, str]] = {
    "negative": (GOOD | {"decode": {"d": -1, "e": 0, "f": 0}}, r"decode.d = -1.0, must be >= 0"),
    "missing": (GOOD | {"prefill": {"a": 1}}, r"prefill.b is not a number"),
    "text": (GOOD | {"kv": {"bytesPerToken": "x"}}, r"kv.bytesPerToken is not a number"),
    "no link": (GOOD | {"kv": {"bytesPerToken": 1, "linkBytesPerSecond": 0}}, "must be > 0"),
    "a list": ([], "prefill.a is not a number"),
}


@pytest.mark.parametrize("case", BAD_PROFILES)
def test_bad_profiles(case: str, tmp_path: Path) -> None:
    document, message = BAD_PROFILES[case]
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(document))
    with pytest.raises(ProfileError, match=message):
        load_profile(str(path))


def test_unknown_profile_names_the_known_ones() -> None:
    with pytest.raises(ProfileError, match="presets are demo-small, h100-llama2-70b-tp8"):
        load_profile("a100")


# --- command line -----------------------------------------------------------------------------

ENV = {"PDSERVE_TOKEN": "t", "PDSERVE_ROLE": "decode", "PDSERVE_INSTANCE": "d0"}


def test_environment_is_the_fallback() -> None:
    config = parse(["--slots", "3"], ENV)
    assert (config.role, config.instance, config.slots, config.prefetch) == ("decode", "d0", 3, 2)
    assert parse(["--role", "prefill"], ENV).prefetch == 0


def test_drain_seconds_come_from_the_operator() -> None:
    assert parse([], ENV).drain_seconds == 25
    told = ENV | {"PDSERVE_DRAIN_SECONDS": "90"}
    assert parse([], told).drain_seconds == 90
    assert parse(["--drain-seconds", "7"], told).drain_seconds == 7


@pytest.mark.parametrize(
    ("argv", "env", "message"),
    [
        ([], {"PDSERVE_DRAIN_SECONDS": "soon"}, "PDSERVE_DRAIN_SECONDS: 'soon'"),
        ([], {"PDSERVE_DRAIN_SECONDS": "nan"}, "--drain-seconds nan"),
        (["--slots", "0"], {}, "--slots 0: must be from 1"),
        (["--pace-factor", "2"], {}, "only means something with --paced"),
        (["--lease-seconds", "0"], {}, "--lease-seconds 0.0"),
        ([], {"PDSERVE_ROLE": "router"}, "PDSERVE_ROLE: 'router'"),
        (["--role", "decode"], {}, "PDSERVE_TOKEN"),
    ],
)
def test_bad_command_lines(
    argv: list[str], env: dict[str, str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse(argv, env)
    assert message in capsys.readouterr().err


def test_pulls_count_for_five_to_ten_minutes() -> None:
    recent = RecentPulls()
    recent.count("p0", False, 10.0)
    assert recent.report(11.0) == {"p0": (1, 0)}
    recent.count("p1", True, 12.0)
    recent.count("p1", False, 299.0)
    assert recent.report(299.0) == {"p0": (1, 0), "p1": (2, 1)}
    recent.count("p0", False, 301.0)
    assert recent.report(599.0) == {"p0": (2, 0), "p1": (2, 1)}
    assert recent.report(600.0) == {"p0": (1, 0)}
    recent.count("p0", True, 5000.0)
    assert recent.report(5000.0) == {"p0": (1, 1)}
