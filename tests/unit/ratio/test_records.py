"""JSON and back, and the same decision again."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.support.ratio_values import decision_input, sample, window

from pdserve.ratio.decide import decide
from pdserve.ratio.records import RecordError, encode, from_json, record, replay, to_json
from pdserve.ratio.types import (
    BudgetLimit,
    Counts,
    Decision,
    DecisionInput,
    ExpectedTraffic,
    PastChange,
    PlacementLimit,
    RequestWindow,
    Unknown,
)

FULL = decision_input(
    fixed=Counts(1, 2, 3),
    expected=ExpectedTraffic(1000.0, 100.0, 3.0),
    budget=(BudgetLimit("npu", 64),),
    placement=(PlacementLimit(3, 3, 1, "leaf-a has 2 free nodes"),),
    changes=(PastChange(10.0),),
    sample=sample((window(met=Unknown("NaN from gw-1")), window(180.0))),
)
INPUTS = {
    "full": FULL,
    "no data": decision_input(sample=Unknown("connection refused")),
    "steady": decision_input(),
    "failing": decision_input(sample=sample(attainment=0.5)),
    "no profile": decision_input(profile=None, sample=sample(attainment=0.5)),
}


@pytest.mark.parametrize("name", INPUTS)
def test_round_trip(name: str) -> None:
    inp = INPUTS[name]
    assert from_json(DecisionInput, to_json(inp)) == inp
    decision = decide(inp)
    assert from_json(Decision, to_json(decision)) == decision


@pytest.mark.invariant(8)
@pytest.mark.parametrize("name", INPUTS)
def test_a_recorded_input_decides_the_same_byte_for_byte(name: str) -> None:
    inp = INPUTS[name]
    line = record(inp, decide(inp))
    assert "\n" not in line
    recorded, again, equal = replay(line)
    assert equal
    assert recorded == again == decide(inp)


def test_replay_shows_a_difference() -> None:
    inp = INPUTS["failing"]
    raw = json.loads(record(inp, decide(inp)))
    raw["input"]["slo"]["attainment"] = 0.1
    recorded, again, equal = replay(json.dumps(raw))
    assert not equal
    assert recorded.outcome == "Applied"
    assert again.outcome == "Held"


def test_whole_floats_and_integers_give_the_same_bytes() -> None:
    one = RequestWindow(60, 12, 1, 1, 1, 1, 1, 1, 0)
    assert to_json(one) == to_json(RequestWindow(60.0, 12.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives(value: float) -> None:
    assert from_json(RequestWindow, to_json(window(offered=value))).offered == value


def test_numbers_keep_their_kind() -> None:
    """A float is read as one though it was written whole; a whole number stays one."""
    raw = json.loads(to_json(FULL))
    raw["now"] = 5000
    again = from_json(DecisionInput, json.dumps(raw))
    assert (again, type(again.now), type(again.current.groups)) == (FULL, float, int)
    assert to_json(again) == to_json(FULL)


def test_a_decision_of_a_reason_that_is_not_known_is_refused() -> None:
    text = to_json(decide(FULL)).replace('"reason":"HoldNoData"', '"reason":"Because"')
    assert "Because" in text
    with pytest.raises(
        RecordError, match=r"Decision.reason: 'Because': want one of \['ModelFloor'"
    ):
        from_json(Decision, text)


def test_a_pair_has_two_items() -> None:
    raw = json.loads(to_json(decide(INPUTS["steady"])))
    assert raw["inputs"][0] == ["age", "3.0s"]
    raw["inputs"][0].append("more")
    with pytest.raises(RecordError, match="a tuple of 2 items, not 3"):
        from_json(Decision, json.dumps(raw))
    raw["inputs"][0] = ["age"]
    with pytest.raises(RecordError, match="a tuple of 2 items, not 1"):
        from_json(Decision, json.dumps(raw))


@pytest.mark.parametrize("value", [{"a": 1}, b"x", 1j])
def test_what_no_field_has_has_no_json_form(value: object) -> None:
    with pytest.raises(TypeError, match="has no JSON form here"):
        encode(value, object)


def test_not_a_number_has_no_json_form() -> None:
    with pytest.raises(ValueError, match="unmeasured quantity is Unknown"):
        to_json(window(offered=float("nan")))


def _changed(**changes: Any) -> str:
    raw = json.loads(to_json(FULL))
    for path, value in changes.items():
        target, *rest = raw, *path.split("__")
        for part in rest[:-1]:
            target = target[part]
        if value is ...:
            del target[rest[-1]]
        else:
            target[rest[-1]] = value
    return json.dumps(raw)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[]", r"DecisionInput: \[\]: want an object"),
        (_changed(now="soon"), "DecisionInput.now: 'soon': want a number"),
        (_changed(now=True), "want a number"),
        (_changed(mode="Turbo"), "DecisionInput.mode: 'Turbo': want one of"),
        (_changed(current__groups=1.5), "DecisionInput.current.groups: 1.5: want an integer"),
        (_changed(slo=...), "DecisionInput.slo: missing"),
        (_changed(colour="red"), "DecisionInput.colour: unknown field"),
        (_changed(zebra=1, colour="red", tide=2, b=3), "DecisionInput.b: unknown field"),
        (_changed(sample={"unknown": 1}), "sample: .* want ScenarioSample or Unknown"),
        (_changed(budget={}), "DecisionInput.budget: .* want a list"),
        (_changed(service=3), "DecisionInput.service: 3: want a str"),
        (_changed(service=None), "DecisionInput.service: None: want a str"),
        (_changed(sample=None), "DecisionInput.sample: None: want a value"),
        (_changed(sample=[]), r"sample: \[\]: want ScenarioSample or Unknown"),
        (_changed(sample__age="x"), "DecisionInput.sample.age: 'x': want a number"),
        (_changed(sample__age={"why": "x"}), "sample.age: .*: want float or Unknown"),
        (_changed(current__groups=True), "DecisionInput.current.groups: True: want an integer"),
        (_changed(changes=[{"time": 1.0}, {"time": "x"}]), r"changes\[1\].time: 'x': want a num"),
    ],
)  # fmt: skip
def test_a_bad_record_is_refused_with_its_path(text: str, message: str) -> None:
    with pytest.raises(RecordError, match=message):
        from_json(DecisionInput, text)


def test_a_bad_log_line_is_refused() -> None:
    with pytest.raises(RecordError, match="want an object with keys"):
        replay('{"input": {}}')
    with pytest.raises(RecordError, match="not JSON"):
        replay("")
