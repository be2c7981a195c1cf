"""Goodput at the SLO where decodes may compute prompts, beside always and never going through one.

Run by `make bench-conditional`, about 20 minutes (`BENCH_ARGS=--quick`: three); progress
on standard error. One prefill and two decodes, real processes paced as devices of a published
profile (`parts/conditional_world.py`), get prompts of one length after another at 0.9 of what the
way through the prefill sustains by the profile. Goodput is what a client saw: requests a second
that met the targets of TTFT, handoff and TPOT. Each run has a gateway that learned nothing, and
each mode gets the same requests.

- always split: `localPrefill: Off`;
- never split: `Fixed`, each prompt goes to a decode, and to the prefill only where no decode has a
  place;
- Auto.

Floor: at no length less than 0.95 of the better of the two others. Where the machine was too busy
to pace the instances, the last row fails.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from statistics import mean

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, concluded
from benchmarks.parts.conditional_world import (
    MODES,
    ConditionalWorld,
    Outcome,
    capacity,
    conditional_world,
)

from pdserve.refengine.runtime.pacing import LATE_SHARE

SECONDS = {32: 12.0, 128: 12.0, 512: 16.0, 1024: 20.0, 2048: 28.0, 4096: 36.0}
"""How long requests of each length come; long prompts are few a second."""
SEEDS, QUICK = (0, 1, 2), 0.35
"""One run each; what a quick one takes of the time, with the first seed."""
LOAD = 0.9
"""Offered, as a multiple of what the way through the prefill sustains by the profile."""
FLOOR = 0.95


async def at_length(
    world: ConditionalWorld, tokens: int, seeds: list[int], share: float, say: Progress
) -> dict[str, list[Outcome]]:
    """All modes at one prompt length, in turn; `share` of the usual time each."""
    found: dict[str, list[Outcome]] = {mode: [] for mode in MODES}
    rate, seconds = LOAD * capacity(tokens), share * SECONDS[tokens]
    for seed in seeds:
        first = seed % len(MODES)
        for mode in [*MODES][first:] + [*MODES][:first]:
            got = await world.run(mode, tokens, rate, seconds, seed)
            found[mode].append(got)
            say(
                f"{tokens} tokens, {mode}: {got.goodput:.2f} of {got.offered:.2f}/s, local "
                f"{got.local:.0%}, TTFT {got.ttft:.2f} s, TPOT {1000 * got.tpot:.0f} ms"
            )
    return found


def row(tokens: int, found: dict[str, list[Outcome]]) -> list[Row]:
    """Auto beside the better of the others, and beside each."""
    goodput = {mode: [o.goodput for o in every] for mode, every in found.items()}
    ours = goodput.pop("Auto")
    better = max(goodput, key=lambda mode: mean(goodput[mode]))
    what = f"goodput, {tokens} prompt tokens"
    return [
        Row(
            what if mode == better else f"{what}, beside the other", mean(ours), "requests/s",
            mode, max(1e-9, mean(values)), FLOOR, "higher", len(ours), max(ours) - min(ours),
        )
        for mode, values in goodput.items()
    ]  # fmt: skip


async def measure(lengths: list[int], seeds: list[int], share: float, say: Progress) -> list[Row]:
    """All rows."""
    rows: list[Row] = []
    async with conditional_world() as world:
        for tokens in lengths:
            rows += row(tokens, await at_length(world, tokens, seeds, share, say))
        late = await world.late()
    rows.append(
        Row("steps later than the profile", late, "of all", "promised", LATE_SHARE, 1.0, "lower")
    )
    return rows


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="once, and shorter")
    parser.add_argument("--lengths", type=_numbers, default=list(SECONDS), help="prompt tokens")
    parser.add_argument("--seeds", type=_numbers, default=list(SEEDS), help="one run each")
    options = parser.parse_args()
    seeds, share = (options.seeds[:1], QUICK) if options.quick else (options.seeds, 1.0)
    return concluded("conditional", measure(options.lengths, seeds, share, Progress()))


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    sys.exit(main())
