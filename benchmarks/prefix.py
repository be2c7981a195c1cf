"""What prefix affinity finds and saves, in virtual time, and what it costs the gateway.

Run by `make bench-prefix`, about two minutes (`BENCH_ARGS=--quick`: a quarter); progress on
standard error. Half an hour of conversations in the shape of Mooncake's trace goes to six prefills
with caches of 3,000 blocks of 512 tokens each, at two loads, from three seeds; each policy gets the
same requests. `tests.support.prefix_policies` says what the policies are: ours has what prefills
report, "own history" only what each gateway sent. The oracle is one cache without bounds that every
prefill could use: no placement finds more.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, report
from benchmarks.parts import prefix_reports
from tests.support import prefix_policies
from tests.support.prefix_trace import Prompt, conversations
from tests.support.prefix_world import Policy, Result, World, ideal_hits, play

from pdserve.forwarding.prefix.blocks import prompt_blocks
from pdserve.forwarding.prefix.index import CAPACITY, PrefixIndex

PREFILLS, ROOM = 6, 3000
RATES = {"load 0.77": 3.4, "load 0.95": 4.2}
"""Requests a second; the load is what they would take without any hit."""
TARGET = 4.0
"""TTFT target, seconds."""
GATEWAYS = (2, 4)
SOON = 300.0
"""Seconds after a start of all gateways."""
US = 1e6
POLICIES = {
    "own history": prefix_policies.affine,
    "usual order": prefix_policies.usual,
    "random": prefix_policies.at_random,
    "round robin": prefix_policies.in_turn,
    "session hash": prefix_policies.by_session,
    "least work by exact events": prefix_policies.least_work,
}
FLOORS = {
    "own history": (0.93, 1.05),
    "usual order": (2.0, 0.9),
    "random": (2.0, 0.5),
    "round robin": (2.0, 0.5),
    "session hash": (0.7, 0.8),
    "least work by exact events": (0.7, 1.4),
}
"""At least so many times the hits, at most so many times the mean TTFT."""


class Runs:
    """Results of one policy over all seeds."""

    def __init__(self, results: list[Result]) -> None:
        self._results = results

    def of(self, figure: Callable[[Result], float]) -> tuple[float, float, int]:
        """Mean, spread and number of a figure."""
        found = [figure(r) for r in self._results]
        return mean(found), max(found) - min(found), len(found)


def _compare(
    what: str, unit: str, ours: Runs, other: Runs, name: str,
    figure: Callable[[Result], float], floor: float,
) -> Row:  # fmt: skip
    """`floor`: how much lower seconds must be, or how much higher shares."""
    value, spread, count = ours.of(figure)
    reference = other.of(figure)[0]
    if unit == "s":
        return Row(what, value, unit, name, reference, floor, "lower", count, spread)
    return Row(what, value, unit, name, reference, floor, "higher", count, spread)


def virtual(seconds: float, seeds: int, say: Progress) -> list[Row]:
    """Hits and times of all policies at each load."""
    rows = []
    for load, rate in RATES.items():
        traces = [conversations(seconds, rate, seed) for seed in range(seeds)]
        ours = Runs([play(t, prefix_policies.reported, PREFILLS, ROOM) for t in traces])
        oracle = mean(ideal_hits(t) for t in traces)
        rows.append(_beside_oracle(f"hit rate, {load}", ours, oracle))
        say(f"{load}: oracle {oracle:.1%}, by reports {rows[-1].value:.1%}")
        for name, policy in POLICIES.items():
            other = Runs([play(t, policy, PREFILLS, ROOM) for t in traces])
            hits, ttft = FLOORS[name]
            rows += [
                _compare(f"hit rate, {load}", "of blocks", ours, other, name,
                         lambda r: r.hit_rate, hits),
                _compare(f"mean TTFT, {load}", "s", ours, other, name,
                         lambda r: r.mean_ttft, ttft),
                _compare(f"p90 TTFT, {load}", "s", ours, other, name, lambda r: r.p90_ttft, ttft),
                _compare(f"TTFT within {TARGET:g} s, {load}", "of requests", ours, other, name,
                         lambda r: r.within(TARGET), 0.97),
            ]  # fmt: skip
            say(f"{load}: {name} {other.of(lambda r: r.hit_rate)[0]:.1%}, "
                f"mean {other.of(lambda r: r.mean_ttft)[0]:.2f} s, "
                f"p90 {other.of(lambda r: r.p90_ttft)[0]:.2f} s")  # fmt: skip
        for count in GATEWAYS:
            rows += _many(load, traces, count, oracle, say)
    return rows


def _beside_oracle(what: str, ours: Runs, oracle: float) -> Row:
    value, spread, count = ours.of(lambda r: r.hit_rate)
    return Row(what, value, "of blocks", "oracle", oracle, 0.55, "higher", count, spread)


def _many(
    load: str, traces: list[list[Prompt]], count: int, oracle: float, say: Progress
) -> list[Row]:
    """Several gateways before the same prefills; they are started anew at half of the time."""
    end = max(t[-1].at for t in traces)
    middle = end / 2

    def runs(policy: Callable[[World, int], Policy]) -> Runs:
        return Runs(
            [play(t, policy, PREFILLS, ROOM, count, restart_at=middle) for t in traces]
        )  # fmt: skip

    ours, own = runs(prefix_policies.reported), runs(prefix_policies.affine)
    usual, which = runs(prefix_policies.usual), f"{count} gateways, {load}"
    rows = [
        _beside_oracle(f"hit rate of {which}", ours, oracle),
        _compare(f"hit rate of {which}", "of blocks", ours, own, "own history",
                 lambda r: r.hit_rate, 1.2 if count == 2 else 1.5),
        _compare(f"mean TTFT of {which}", "s", ours, own, "own history",
                 lambda r: r.mean_ttft, 0.95 if count == 2 else 0.9),
        _compare(f"mean TTFT of {which}", "s", ours, usual, "usual order",
                 lambda r: r.mean_ttft, 0.85),
        _compare(f"hit rate in {SOON:g} s after a start of {which}", "of blocks", ours, own,
                 "own history", lambda r: r.hit_rate_between(middle, middle + SOON),
                 1.3 if count == 2 else 1.5),
    ]  # fmt: skip
    say(f"{which}: by reports {ours.of(lambda r: r.hit_rate)[0]:.1%}, own history "
        f"{own.of(lambda r: r.hit_rate)[0]:.1%}; after a start {rows[-1].value:.1%}, "
        f"{rows[-1].reference:.1%}")  # fmt: skip
    return rows


def _timed(action: Callable[[], object], repetitions: int) -> list[float]:
    taken = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        action()
        taken.append(time.perf_counter() - begin)
    return taken


def costs(repetitions: int) -> list[Row]:
    """Processor time of a request and of a full index, and its memory; beside promised limits."""
    rng = random.Random(1)
    prefills = [f"p{n}" for n in range(64)]
    text = "".join(rng.choice("abcdefgh ") for _ in range(32 << 10))
    blocks = prompt_blocks({"prompt": text}, b"k").digests
    chains = [[rng.getrandbits(64) for _ in range(64)] for _ in range(CAPACITY // 64)]

    def filled() -> PrefixIndex[str]:
        index: PrefixIndex[str] = PrefixIndex()
        index.follow(prefills)
        for n, chain in enumerate(chains):
            index.stored(prefills[n % 64], chain)
        return index

    built = _timed(filled, max(3, repetitions // 100))
    tracemalloc.start()
    index = filled()
    memory = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert index.size == CAPACITY
    index.stored("p5", blocks)
    unknown = [rng.getrandbits(64)]

    def choose() -> object:
        return index.best(index.find(blocks), 4, rng.random)

    hashed = _timed(lambda: prompt_blocks({"prompt": text}, b"k"), repetitions)
    hit = _timed(choose, repetitions)
    miss = _timed(lambda: index.find(unknown), repetitions)

    def row(what: str, taken: list[float], unit: str, limit: float) -> Row:
        scale = US if unit == "us" else 1.0
        found = [scale * t for t in taken]
        return Row(what, median(found), unit, "promised", limit, 1.0, "lower", len(found),
                   max(found) - min(found))  # fmt: skip

    reports = prefix_reports.times(lambda action: _timed(action, repetitions), row)
    return [
        *reports,
        row("digests of a prompt of 32 KiB", hashed, "us", 250.0),
        row("look-up of its 64 blocks, 64 prefills", hit, "us", 100.0),
        row("look-up without a hit", miss, "us", 5.0),
        row(f"index of {CAPACITY} blocks built anew", built, "s", 1.0),
        Row(f"memory of {CAPACITY} blocks", memory / 2**20, "MiB", "promised", 16.0, 1.0, "lower"),
    ]


def main() -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser(prog="bench-prefix", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a quarter of the time")
    quick = parser.parse_args().quick
    say = Progress()
    rows = virtual(900.0 if quick else 1800.0, 2 if quick else 3, say)
    rows += prefix_reports.rebuilt(3 if quick else 5, say)
    return report("prefix", rows + costs(300 if quick else 1000))


if __name__ == "__main__":
    sys.exit(main())
