"""The demo's judgement of a shift of load: claims, and the comparison with fixed counts."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from tests.support.demo_shift import measured

from localcluster.demo import fixed, judge
from pdserve.api import PDService

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "demo-pdservice.yaml"


def verdicts(**how: object) -> dict[str, bool]:
    return {c.name: c.ok for c in judge.claims(measured(**how))}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("how", "want"),
    [
        ({}, {"ratio-direction": True, "ttft-recovers": True, "better-than-fixed": True}),
        ({"prefill": 2}, {"ratio-direction": False}),
        ({"own_bad_until": 100.0}, {"ttft-recovers": False, "better-than-fixed": False}),
        ({"own_bad_until": 82.5}, {"ttft-recovers": False, "better-than-fixed": True}),
        ({"stayed": False}, {"ttft-recovers": True, "better-than-fixed": False}),
    ],
    ids=["as expected", "never grows", "as bad as fixed", "late recovery", "fixed ones changed"],
)
def test_claims_hold_only_when_they_do(how: dict[str, object], want: dict[str, bool]) -> None:
    assert {name: ok for name, ok in verdicts(**how).items() if name in want} == want


def test_both_sides_count_every_offered_request_after_the_shift() -> None:
    made = judge.comparison(measured())
    for side in (made.own, made.fixed):
        assert side.offered == 132
        assert side.in_time + side.late + side.refused == side.offered
    assert (made.own.in_time, made.own.late, made.own.refused) == (92, 20, 20)
    assert (made.fixed.in_time, made.fixed.late, made.fixed.refused) == (0, 66, 66)
    assert (made.own.end_share, made.fixed.end_share) == (1.0, 0.0)


def test_devices_are_held_from_when_they_are_wanted() -> None:
    made = judge.comparison(measured())
    assert (made.own.devices_most, made.fixed.devices_most) == (32, 24)
    assert made.own.devices_mean == pytest.approx((50 * 24 + 50 * 32) / 100)
    assert made.fixed.devices_mean == 24


@pytest.mark.parametrize(("until", "noted"), [(54.0, True), (100.0, False)])
def test_devices_count_as_saved_only_if_the_last_counts_were_enough(
    until: float, noted: bool
) -> None:
    notes = " ".join(judge.comparison(measured(own_bad_until=until)).notes)
    assert ("12% fewer" in notes) is noted
    assert ("Devices saved" in notes) is noted


def test_nothing_offered_is_no_attainment() -> None:
    assert judge.attainment([]) != judge.attainment([])  # not a number


def test_the_judged_targets_are_those_of_the_example() -> None:
    service = PDService.parse(yaml.safe_load(EXAMPLE.read_text()))
    [chat] = [s for s in service.spec.scenarios if s.name == "chat"]
    assert chat.slo.attainment_percent == 100 * judge.TARGET
    assert chat.slo.ttft == f"{judge.CHAT_TTFT:g}s"
    for role in (service.spec.prefill, service.spec.decode):
        assert role.instance.devices_per_node == judge.DEVICES_EACH


def test_the_service_beside_differs_in_its_counts_alone() -> None:
    demo = yaml.safe_load(EXAMPLE.read_text())
    made = fixed.manifest(demo, groups=1, prefill=2, decode=4)
    PDService.parse(made)
    assert demo == yaml.safe_load(EXAMPLE.read_text()), "the example is left alone"
    [chat] = [s for s in demo["spec"]["scenarios"] if s["name"] == "chat"]
    [beside] = made["spec"]["scenarios"]
    assert beside["ratio"].pop("fixed") == {"groups": 1, "prefill": 2, "decode": 4}
    assert beside["ratio"].pop("mode") == "Fixed"
    chat["ratio"].pop("mode")
    assert beside == chat
    assert made["metadata"].pop("namespace") == fixed.FIXED_NAMESPACE
    assert made["spec"] | {"scenarios": 0} == demo["spec"] | {"scenarios": 0}
    assert made["metadata"] == demo["metadata"]
