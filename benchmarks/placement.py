"""Placement at 10,240 nodes: what a place costs, how near the best it is, and beside others.

Run by `make bench-placement`, some minutes; progress on standard error. Costs are processor time.

1. Online: P/D groups of ten kinds come and go in a fabric that is 90 to 99 % full, as the operator
   asks: the fabric is renewed after each change, counting is prepared in steps, then `place`.
2. One P/D group of 63P64D; 1,000 instances at once.
3. 400 P/D groups to 99 % full, by us and by the policies of others (`parts/placement_policies`).
4. Small cases against the exact optimum (`parts/placement_exact`), all terms of the cost.
5. KV over uplinks while groups come and go, by us and by the policies of others.
"""

from __future__ import annotations

import argparse
import gc
import random
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.harness import Progress, Row, report
from benchmarks.parts.placement_exact import least_cost
from benchmarks.parts.placement_policies import POLICIES, Policy
from benchmarks.parts.placement_site import (
    DEVICES,
    KINDS,
    NPU,
    SPEC,
    Kind,
    Site,
    as_placement,
    shape,
    views,
)

from pdserve.placement import GroupRequest, NoFit, Placement, place, prepare, weights
from pdserve.placement.capacity import capacity_for
from pdserve.placement.cost import traffic
from pdserve.placement.place import place_closest
from pdserve.placement.types import Cost
from pdserve.topology import Fabric, build_fabric

PODS, LEAVES, NODES = 10, 32, 32
CHANGES, SMALL = 2000, 1500
STEP_LEAVES = 15
"""Leaves that the operator counts in one step."""
FULL = 0.99
TERMS = ("unplaced", "traffic", "slots_lost", "domains", "leftover")
TERMS_BOUND = 5.0
"""Percent above the optimum in the first term that differs, 99th percentile."""


def online(rng: random.Random, changes: int, progress: Progress) -> list[Row]:
    """Phase 1."""
    site = Site(views(PODS, LEAVES, NODES))
    _fill(site, rng, 0.95)
    gc.collect()
    gc.freeze()  # as the operator does once its caches are full
    costs: list[float] = []
    steps: list[float] = []
    refusals: list[float] = []
    while len(costs) + len(refusals) < changes:
        full = site.taken >= rng.uniform(0.9, FULL) * site.devices
        if full:
            for _ in range(rng.randint(1, 3)):
                site.remove(rng)
            continue
        kind = rng.choice(KINDS)
        steps += _prepared(site.fabric, kind.request)
        began = time.process_time()
        found = place(site.fabric, kind.request)
        spent = 1e3 * (time.process_time() - began)
        if isinstance(found, NoFit):
            refusals.append(spent)
            site.remove(rng)
            continue
        began = time.process_time()
        site.add(kind, found)
        costs.append(spent + 1e3 * (time.process_time() - began))
    progress(f"{len(costs)} places and {len(refusals)} refusals, {len(site.groups)} groups stay")
    rows = [
        _high("a place at 10,240 nodes, 90 to 99 % full", costs, "ms", 5.0),
        _high("a step of counting before it", steps, "ms", 50.0),
    ]
    asked = Kind(63, 64, 8, 8).request  # more than 1 % of all devices
    for _ in range(30):
        _fill(site, rng, FULL)
        _prepared(site.fabric, asked)
        began = time.process_time()
        if isinstance(place(site.fabric, asked), NoFit):
            refusals.append(1e3 * (time.process_time() - began))
        site.remove(rng)
    return [*rows, _high("a refusal", refusals, "ms", 5.0)]


def _fill(site: Site, rng: random.Random, share: float) -> None:
    """Place groups until so much is taken."""
    while site.taken < share * site.devices:
        kind = rng.choice(KINDS)
        found = place(site.fabric, kind.request)
        if isinstance(found, NoFit):
            return
        site.add(kind, found)


def _prepared(fabric: Fabric, request: GroupRequest) -> list[float]:
    """Milliseconds of each step that was taken."""
    steps: list[float] = []
    while True:
        began = time.process_time()
        if prepare(fabric, request, STEP_LEAVES):
            return steps
        steps.append(1e3 * (time.process_time() - began))


def large(rng: random.Random) -> list[Row]:
    """Phase 2."""
    costs = []
    for full in (0.0, 0.5, 0.9, 0.95):
        site = Site(views(PODS, LEAVES, NODES))
        site.change(_used(site, rng, full))
        asked = Kind(63, 64, 8, 8).request
        _prepared(site.fabric, asked)
        for _ in range(5):
            began = time.process_time()
            found = place(site.fabric, asked)
            costs.append(1e3 * (time.process_time() - began))
            assert isinstance(found, Placement), f"63P64D does not fit at {full}: {found}"
    spent, n = [], 5
    for _ in range(n):
        site = Site(views(PODS, LEAVES, NODES))
        site.change(_used(site, rng, 0.5))
        _prepared(site.fabric, KINDS[0].request)
        view, left, began = site.fabric, 1000, time.process_time()
        while left > 0:
            found = place(view, KINDS[0].request)
            assert isinstance(found, Placement), found
            view = view.reserve(found.reservations)
            left -= len(found.assignments)
        spent.append(time.process_time() - began)
    return [
        _high("63P64D, up to 95 % full", costs, "ms", 100.0),
        _bound("1,000 instances of 2P4D at once", statistics.median(spent), "s", 1.0, spent),
    ]


def _used(site: Site, rng: random.Random, share: float) -> dict[str, int]:
    """Nodes of which others use all devices."""
    names = sorted(site.fabric.nodes)
    return dict.fromkeys(rng.sample(names, int(share * len(names))), DEVICES)


def filled(seed: int, progress: Progress) -> list[Row]:
    """Phase 3."""
    rng = random.Random(seed)
    kinds = _four_hundred(rng)
    left: dict[str, int] = {}
    for name, policy in (("pdserve", None), *POLICIES.items()):
        site, chooser = Site(views(PODS, LEAVES, NODES)), random.Random(seed)
        for kind in kinds:
            found = _place_by(policy, site.fabric, kind, chooser)
            if found is None:
                left[name] = left.get(name, 0) + kind.prefill + kind.decode
            else:
                site.add(kind, found)
        progress(f"400 groups by {name}: {left.get(name, 0)} instances have no place")
    ours = left.pop("pdserve", 0)
    best = min((left.get(name, 0), name) for name in POLICIES)
    what = f"instances of 400 groups without a place at {100 * FULL:.0f} %"
    # One more than there are, so that none is 1.
    return [Row(what, ours + 1, "+ 1", f"the best other, {best[1]}", best[0] + 1, 1, "lower", 400)]


def _four_hundred(rng: random.Random) -> list[Kind]:
    """400 groups of mixed sizes that take 99 % of all devices."""
    room = int(FULL * PODS * LEAVES * NODES * DEVICES)
    kinds = []
    for left in range(400, 0, -1):
        mean = room / left
        sizes = rng.choice(((8, 8), (8, 8), (4, 4), (8, 4), (2, 8)))
        share = rng.uniform(0.2, 0.8)
        wanted = mean * rng.uniform(0.4, 1.6) if left > 1 else mean
        p, d = (
            max(1, round(wanted * share / sizes[0])),
            max(1, round(wanted * (1 - share) / sizes[1])),
        )
        kinds.append(Kind(min(p, 63), min(d, 63), *sizes))
        room -= kinds[-1].devices
    return kinds


def _place_by(
    policy: Policy | None, fabric: Fabric, kind: Kind, rng: random.Random
) -> Placement | None:
    request = kind.request
    if policy is None:
        found = place(fabric, request)
        return found if isinstance(found, Placement) else None
    capacity = capacity_for(fabric, request)
    spread = policy(fabric, capacity, request, rng)
    return None if spread is None else as_placement(capacity, request, spread)


def exact(seed: int, count: int, progress: Progress) -> list[Row]:
    """Phase 4."""
    rng, gaps, refused = random.Random(seed), [], 0
    by_term = dict.fromkeys(TERMS, 0)
    while len(gaps) < count:
        fabric, request = _small(rng)
        best, found = least_cost(fabric, request), place_closest(fabric, request)
        if best is None or isinstance(found, NoFit):
            assert best is None and isinstance(found, NoFit), f"{found} but {best}"
            refused += 1
            continue
        gap, term = _gap(found.cost, best)
        if term:
            by_term[term] += 1
        gaps.append(100 * gap)
    worse = {term: n for term, n in by_term.items() if n}
    progress(
        f"{count} small cases: {worse or 'none is worse than the best'}; {refused} fit nowhere"
    )
    high = statistics.quantiles(gaps, n=100, method="inclusive")[98]
    return [
        # One more than the percents, so that none is 1.
        _bound("gap to the optimum, median", 1 + statistics.median(gaps), "% + 1", 1.0, gaps),
        _bound("gap to the optimum, p99", 1 + high, "% + 1", 1 + TERMS_BOUND, gaps),
    ]


def _small(rng: random.Random) -> tuple[Fabric, GroupRequest]:
    """Up to 3 pods x 3 leaves x 4 nodes, partly used, and a group of up to 5P5D."""
    free = (0, 0, 0, 2, 4, 4, 6, 8, 8, 7, 5)
    nodes = views(rng.randint(1, 3), rng.randint(1, 3), rng.randint(1, 4))
    tree = build_fabric(SPEC, [replace(v, used={NPU: rng.choice(free)}) for v in nodes])
    sizes = ((8, 8), (4, 4), (2, 2), (4, 2), (2, 4), (1, 1), (4, 8), (8, 4), (2, 8))
    p, d = rng.choice(sizes)
    request = GroupRequest(
        rng.randint(1, 5), rng.randint(1, 5), shape(p), shape(d),
        rng.choice(("Preferred", "Preferred", "Preferred", "Required")),
        rng.choice((None, None, "pod")),
    )  # fmt: skip
    return tree, request


def _gap(found: Cost, best: Cost) -> tuple[float, str]:
    """By how much the first term that differs is above the optimum, and which it is."""
    for term in TERMS:
        mine, least = getattr(found, term), getattr(best, term)
        if mine != least:
            assert mine > least, f"{found} is better than the optimum {best}"
            return (mine - least) / max(1, least), term
    return 0.0, ""


def beside_others(seed: int, changes: int, progress: Progress) -> list[Row]:
    """Phase 5."""
    crossing: dict[str, float] = {}
    for name, policy in (("pdserve", None), *POLICIES.items()):
        rng, chooser = random.Random(seed), random.Random(seed)
        site = Site(views(4, 8, 16))
        shares: list[float] = []
        while len(shares) < changes:
            full = site.taken >= 0.95 * site.devices
            if full:
                for _ in range(rng.randint(1, 3)):
                    site.remove(rng)
            kind = rng.choice(KINDS)
            found = _place_by(policy, site.fabric, kind, chooser)
            if found is None:
                site.remove(rng)
                continue
            cells = {c.leaf: (c.prefill, c.decode) for c in found.cells}
            kv = kind.prefill * kind.decode
            if full or shares:
                shares.append(100 * traffic(cells, weights(site.fabric)) / kv)
            site.add(kind, found)
        crossing[name] = statistics.fmean(shares)
        progress(f"{name}: {crossing[name]:.2f} % of a group's KV x hops cross uplinks")
    ours = crossing.pop("pdserve")
    unit = "% of KV x hops"
    # What crosses nothing has no ratio: 0.001 stands for none.
    return [
        Row(
            f"KV over uplinks beside {name}, 95 % full",
            max(ours, 1e-3), unit, name, max(theirs, 1e-3), 1, "lower", changes,
        )
        for name, theirs in crossing.items()
    ]  # fmt: skip


def _high(what: str, values: Sequence[float], unit: str, bound: float) -> Row:
    """The 99th percentile."""
    high = statistics.quantiles(values, n=100, method="inclusive")[98]
    return _bound(f"{what}, p99", high, unit, bound, values)


def _bound(what: str, value: float, unit: str, bound: float, values: Sequence[float]) -> Row:
    spread = max(values) - min(values)
    return Row(what, value, unit, "bound", bound, 1, "lower", len(values), spread)


def main() -> int:
    """Run the bench; the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=20261201)
    parser.add_argument(
        "--changes", type=int, default=CHANGES, help="places that are asked for online"
    )
    parser.add_argument("--small", type=int, default=SMALL, help="cases with an exact optimum")
    args = parser.parse_args()
    progress, rng = Progress(), random.Random(args.seed)
    phases: list[tuple[str, Callable[[], list[Row]]]] = [
        ("online", lambda: online(rng, args.changes, progress)),
        ("large", lambda: large(rng)),
        ("filled", lambda: filled(args.seed, progress)),
        ("exact", lambda: exact(args.seed, args.small, progress)),
        ("beside others", lambda: beside_others(args.seed, args.changes // 5, progress)),
    ]
    rows: list[Row] = []
    for name, phase in phases:
        rows += phase()
        progress(f"{name}: done")
    full = (args.changes, args.small) == (CHANGES, SMALL)
    return report("placement", rows, ranges=full)


if __name__ == "__main__":
    sys.exit(main())
