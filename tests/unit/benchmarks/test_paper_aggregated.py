"""The bench of the paper's figures: P/D serving beside aggregated serving."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from benchmarks import paper
from benchmarks.parts import paper_aggregated, paper_ratio
from benchmarks.parts.aggregated import (
    AggregatedPlant,
    Law,
    Request,
    World,
    chunked,
    prompts_first,
    static_batches,
)
from benchmarks.parts.paper_aggregated import PD, STRONGEST, Setting

from pdserve.ratio.presets import preset
from pdserve.sim.arrivals import Arrivals
from pdserve.terms import Slo

SLO = Slo(ttft=5.0, handoff=0.3, tpot=0.05, attainment=0.99)
PROFILE = preset("llama2-70b-h100x8", 4, 64)
WORLD = World(PROFILE, SLO)
LAWS = {"whole": prompts_first, "chunked": chunked(512), "static": static_batches(4)}


def served(
    law: Law, rows: list[tuple[float, int, int]], instances: int = 1, world: World = WORLD
) -> list[Request]:
    """Requests of (arrival, prompt, output)."""
    times = np.array([at for at, _, _ in rows])
    tokens = np.array([(prompt, 0, output) for _, prompt, output in rows], dtype=np.int64)
    return AggregatedPlant(world, law, instances).run(Arrivals(times, tokens))


def step(streams: int, context: int) -> float:
    d = PROFILE.decode
    return d.base + streams * d.per_request + d.per_context_token * context


@pytest.mark.parametrize("name", list(LAWS))
def test_alone_a_request_takes_its_prefill_and_its_steps(name: str) -> None:
    (req,) = served(LAWS[name], [(0.0, 400, 3)])
    alone = PROFILE.prefill.batch_seconds(1, 400, 400 * 400)
    assert req.first == pytest.approx(alone)
    assert req.last == pytest.approx(alone + step(1, 401) + step(1, 402))


def test_streams_stand_still_while_a_whole_prompt_is_computed() -> None:
    first, second = served(prompts_first, [(0.0, 100, 20), (0.2, 8000, 2)])
    assert second.first - 0.2 > 0.7, "the long prompt alone takes so long"
    assert first.last > second.first, "and the stream ends after it"
    assert first.last - first.first == pytest.approx(19 * step(1, 110) + 0.76, abs=0.1)


def test_chunks_let_streams_go_on() -> None:
    first, second = served(chunked(512), [(0.0, 100, 10), (0.05, 8000, 2)])
    assert first.last < second.first
    whole, _ = served(prompts_first, [(0.0, 100, 10), (0.05, 8000, 2)])
    assert first.last < whole.last


def test_interference_makes_mixed_iterations_longer_alone() -> None:
    rows = [(0.0, 100, 40), (0.5, 2000, 2)]
    slow = World(PROFILE, SLO, interference=1.5)
    plain, slowed = served(chunked(512), rows), served(chunked(512), rows, world=slow)
    assert slowed[0].first == plain[0].first, "nothing decodes yet"
    assert slowed[1].first > plain[1].first


def test_a_static_batch_ends_before_the_next_begins() -> None:
    long, short, late = served(
        static_batches(2), [(0.0, 100, 3), (0.001, 100, 50), (0.002, 100, 3)]
    )
    assert short.first > long.last, "the first began alone"
    assert late.first == short.first
    (last,) = served(static_batches(2), [(0.0, 100, 50), (0.1, 100, 3)])[1:]
    assert last.first > 49 * step(1, 100)


def test_a_request_that_would_be_late_ends() -> None:
    reqs = served(static_batches(1), [(0.0, 100, 400), (0.1, 100, 3)])
    assert [r.met(SLO) for r in reqs] == [True, False]
    assert reqs[1].first == 0, "it was computed for nothing"


def test_requests_go_to_the_instance_with_the_fewest() -> None:
    reqs = served(prompts_first, [(0.0, 4000, 2), (0.01, 100, 2)], instances=2)
    assert reqs[1].first < reqs[0].first


@pytest.mark.parametrize("law", LAWS.values(), ids=LAWS)
def test_every_request_ends_and_none_before_its_own_work(law: Law) -> None:
    rng = np.random.default_rng(1)
    rows = [
        (float(at), int(prompt), int(output))
        for at, prompt, output in zip(
            np.sort(rng.uniform(0, 30, 120)), rng.integers(1, 4000, 120), rng.integers(1, 60, 120),
            strict=True,
        )
    ]  # fmt: skip
    for req in served(law, rows, instances=2):
        if req.last:
            least = PROFILE.prefill.per_token * req.prompt + 0.0298 * (req.output - 1)
            assert req.last - req.arrived >= least
        else:
            assert req.first == 0


def test_factors_leave_out_what_serves_nothing_and_the_floor_is_the_strongest() -> None:
    def figures(pd: float, strongest: float) -> dict[str, float]:
        return {PD: pd, **dict.fromkeys(paper_aggregated.LAWS, 0.0), STRONGEST: strongest}

    results = {
        Setting("500+500", 1.0, 0.05): [figures(2.0, 1.0)],
        Setting("500+500", 4.0, 0.05): [figures(1.5, 3.0)],
    }
    (claim,) = paper_aggregated.claims(results)
    assert (claim.low.mean, claim.high.mean) == (0.5, 2.0)
    (row,) = paper_aggregated.rows(results)
    assert not row.ok


def test_no_search_ends_below_what_roles_with_fractions_would_serve() -> None:
    setting = Setting("1200+200", 4.0, 0.1)
    split = max(paper_ratio.bound(setting.served, n) for n in range(1, 8))
    assert split < paper_aggregated.fluid(setting) < 1.2 * split


def test_a_tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paper_ratio, "SECONDS", 15.0)
    monkeypatch.setattr(paper_ratio, "STEPS", 4)
    monkeypatch.setattr(paper_aggregated, "SECONDS", 10.0)
    settings = {"aggregated": [Setting("1200+200", 4.0, 0.1)]}
    claims, (row,) = paper.measured(["aggregated"], 1, 1, settings, tmp_path)
    assert claims[0].low.mean == pytest.approx(row.ratio)
    assert 0.3 < row.ratio < 10
