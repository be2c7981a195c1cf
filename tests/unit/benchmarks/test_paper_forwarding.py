"""The bench of the paper's figures: local queues beside on-demand forwarding."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchmarks import paper
from benchmarks.parts.local_queues import (
    Choose,
    ClosedLoop,
    GatewayCode,
    LocalQueues,
    PlainOnDemand,
    fewest_streams,
    round_robin,
)
from benchmarks.parts.paper_claims import Claim, Point, told
from benchmarks.parts.paper_forwarding import CODE, LOCAL, OURS, PUBLISHED, Make, Setting, rows
from benchmarks.parts.paper_plot import picture
from tests.support.naive_plant import Inst, NaivePlant, Req

from pdserve.ratio.presets import preset
from pdserve.sim.plant import PlantSpec
from pdserve.terms import Slo

LONG, SHORT = 8000, 1000


def spec(slots: int = 1, ttft: float = 1.0) -> PlantSpec:
    profile = preset("llama2-70b-h100x8", slots, 64)
    return PlantSpec(profile, Slo(ttft=ttft, handoff=0.3, tpot=0.05, attainment=0.99), capacity=8)


def served(plant: NaivePlant, prompts: list[int]) -> list[Req]:
    """Requests that arrive one after another within milliseconds."""
    reqs = [Req(n, 0.001 * (n + 1), prompt, 0, 3) for n, prompt in enumerate(prompts)]
    for req in reqs:
        plant.arrive(req)
    plant.run_until(30.0)
    return reqs


@pytest.mark.parametrize("choose", [fewest_streams, round_robin()], ids=["streams", "round robin"])
def test_a_short_prompt_waits_behind_a_long_one_in_a_local_queue(choose: Choose) -> None:
    """The paper's example: one of 8k and three short ones on two prefills with one slot."""
    reqs = served(LocalQueues(spec(), 2, 1, choose), [LONG, SHORT, SHORT, SHORT])
    first, _, behind, _ = reqs
    assert behind.source is first.source
    assert behind.first > first.computed


@pytest.mark.parametrize("plant", [PlainOnDemand, ClosedLoop, GatewayCode])
def test_on_demand_no_prompt_waits_behind_the_long_one(plant: Make) -> None:
    reqs = served(plant(spec(ttft=2.0), 2, 1), [LONG, SHORT, SHORT, SHORT])
    assert [r.source is reqs[0].source for r in reqs] == [True, False, False, False]
    assert {r.outcome for r in reqs} == {"completed"}


def test_a_request_whose_ttft_is_over_ends_before_it_is_computed() -> None:
    reqs = served(LocalQueues(spec(ttft=0.5), 1, 1, fewest_streams), [4000, 4000, SHORT])
    assert [r.outcome for r in reqs] == ["completed", "expired", "expired"]
    assert reqs[1].computed > 0, "its time was not over before it was computed"
    assert reqs[2].computed == 0, "it was computed for nothing"


def test_a_prefill_takes_from_its_queue_what_its_slots_hold_beside_kv_in_transfer() -> None:
    plant = LocalQueues(spec(slots=3), 1, 1, fewest_streams)
    batches = Counter(r.computed for r in served(plant, [SHORT] * 6))
    assert [batches[end] for end in sorted(batches)] == [1, 2, 1, 2]


def test_the_fewest_streams_count_those_in_decode() -> None:
    busy, idle = Inst(0, "prefill", 0), Inst(1, "prefill", 0)
    assert fewest_streams([busy, idle], Counter({0: 2, 1: 1})) is idle
    assert fewest_streams([busy, idle], Counter()) is busy


def test_a_claim_says_which_assumptions_yield_the_papers_figure() -> None:
    near, far = Point("near", (40.0, 44.0)), Point("far", (90.0, 91.0))
    claim = Claim("gain", 42.0, "points", (far, near), 4.0)
    assert [p.assumed for p in claim.yielding()] == ["near"]
    assert (claim.low, claim.high, claim.spread) == (near, far, 4.0)
    assert "yields the paper's: 1 of 2" in told([claim])


def test_an_assumption_that_the_paper_excludes_does_not_yield_its_figure() -> None:
    claim = Claim("gain", 42.0, "points", (Point("near", (42.0,)),), 4.0, frozenset({"other"}))
    assert claim.yielding() == []
    assert "none within the ranges" in told([claim])


def test_the_picture_has_a_mark_for_each_assumption_and_one_for_the_paper() -> None:
    points = tuple(Point(f"{n} < 3", (float(n),)) for n in range(3))
    root = ElementTree.fromstring(picture([Claim("gain", 42.0, "%", points, 4.0)]))
    titles = [element.text for element in root.iter("{http://www.w3.org/2000/svg}title")]
    assert titles == ["0 < 3: 0 %", "1 < 3: 1 %", "2 < 3: 2 %"]
    paths = [e.get("d", "") for e in root.iter("{http://www.w3.org/2000/svg}path")]
    assert paths[-1].startswith("M630.0 "), "the paper's is the largest"


def test_the_floor_fails_where_a_local_queue_attains_a_tenth_more() -> None:
    figures = {OURS: 0.80, CODE: 0.90, PUBLISHED: 0.5, LOCAL[0]: 0.95, LOCAL[1]: 0.80}
    found = rows({Setting("alike", "open", 1.0): [figures]})
    assert [row.ok for row in found] == [False, True, True, True]


def test_a_tiny_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    settings = {"forwarding": [Setting("example", "closed", 1.0, prefills=1)]}
    claims, _ = paper.measured(["forwarding"], 1, 1, settings, tmp_path)
    assert claims[0].low.mean > 20, "a local queue should lose much at this load"
    (kept,) = tmp_path.iterdir()
    kept.write_text(kept.read_text().replace(f'"{OURS}": ', f'"{OURS}": 1'))
    again, _ = paper.measured(["forwarding"], 1, 1, settings, tmp_path)
    assert again[0].low.mean > claims[0].low.mean, "it was measured again"
