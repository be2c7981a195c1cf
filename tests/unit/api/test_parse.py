"""Reading objects: defaults, units, and errors that say where, what, and what would be right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.api_bad import BAD
from tests.support.api_case import Bad
from tests.support.api_objects import (
    BASES,
    FULL,
    GONE,
    GOOD,
    edited,
    pdservice,
    rocedomain,
    scenariogroup,
)
from tests.support.hostile import VALUES, deep, places, put

from pdserve.api import (
    KINDS,
    Bandwidth,
    Duration,
    InvalidObjectError,
    PDService,
    PDServiceStatus,
    RoCEDomain,
    ScenarioGroup,
    ScenarioGroupStatus,
)

BY_NAME = {kind.info.name: kind for kind in KINDS}
EXAMPLES = Path(__file__).parents[3] / "examples"


@pytest.mark.parametrize("case", BAD, ids=lambda c: f"{c.kind}: {c.name}")
def test_the_parser_refuses_what_the_server_refuses_at_the_same_field(case: Bad) -> None:
    with pytest.raises(InvalidObjectError) as caught:
        BY_NAME[case.kind].parse(case.object)
    problems = caught.value.problems
    assert {p.path for p in problems} == {case.parser_field or case.field}, problems
    assert all(p.want for p in problems)
    assert str(problems[0]) in str(caught.value)


@pytest.mark.parametrize(
    ("edits", "path", "value", "want"),
    [
        ({"spec.scenarios.0.slo.ttft": "800"}, "spec.scenarios[0].slo.ttft", "'800'",
         "must be a positive duration up to 10m, such as 800ms, 1.5s or 1m30s"),
        ({"spec.prefill.maxConcurrency": True}, "spec.prefill.maxConcurrency", "True",
         "must be a whole number from 1 to 4096"),
        ({"spec.prefill.maxConcurrency": GONE}, "spec.prefill.maxConcurrency", "missing",
         "required value"),
        ({"spec.engine.type": "V LLM"}, "spec.engine.type", "'V LLM'",
         "must be letters, digits and '-', starting with a letter"),
        ({"spec.scenarios.0.groups": {"min": 5, "max": 2}}, "spec.scenarios[0].groups.min", "5",
         "min must be at most max"),
        ({"spec.retries": 3}, "spec.retries", "3", "unknown field"),
        ({"spec.scenarios.1.name": "search"}, "spec.scenarios", None,
         "items must differ in name: search repeats"),
        ({"spec.scenarios.0.match.headers": {"x-a": ""}}, "spec.scenarios[0].match.headers",
         "{'x-a': ''}", "value of 'x-a' must have 1 to 256 characters"),
        ({"spec": "none"}, "spec", "'none'", None),
    ],
)  # fmt: skip
def test_errors_say_path_value_and_what_would_be_right(
    edits: dict[str, Any], path: str, value: str | None, want: str | None
) -> None:
    with pytest.raises(InvalidObjectError) as caught:
        PDService.parse(edited(pdservice(), edits))
    (problem,) = caught.value.problems
    assert problem.path == path
    assert value is None or problem.value == value
    assert want is None or problem.want == want


def test_every_problem_is_reported_at_once() -> None:
    bad = edited(pdservice(), {"spec.prefill.maxConcurrency": 0, "spec.engine.image": ""})
    with pytest.raises(InvalidObjectError) as caught:
        PDService.parse(bad, subject="PDService default/shop")
    assert [p.path for p in caught.value.problems] == [
        "spec.engine.image",
        "spec.prefill.maxConcurrency",
    ]
    assert str(caught.value).startswith("PDService default/shop: spec.engine.image: '': must")


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_what_is_no_object_is_refused(value: Any) -> None:
    with pytest.raises(InvalidObjectError):
        PDService.parse(value)


def test_long_values_are_shortened_in_errors() -> None:
    with pytest.raises(InvalidObjectError) as caught:
        PDService.parse(edited(pdservice(), {"spec.engine.image": "x" * 600}))
    assert len(caught.value.problems[0].value) == 80


@pytest.mark.parametrize("name", GOOD)
def test_unusual_but_right_services_parse(name: str) -> None:
    assert PDService.parse(GOOD[name]).to_dict()["metadata"]["name"]


def test_defaults() -> None:
    spec = PDService.parse(pdservice()).spec
    assert spec.recovery.drain_seconds == 60
    assert spec.recovery.node_suspect_seconds == 30
    assert (spec.gateway.replicas, spec.gateway.port, spec.gateway.auth) == (1, 80, None)
    assert spec.prefill.startup_deadline_seconds == 900
    assert (spec.fabric.locality.mode, spec.fabric.locality.level) == ("Preferred", None)
    domain = RoCEDomain.parse(rocedomain()).spec
    assert (domain.missing_label_policy, domain.address_source) == ("Exclude", "NodeAnnotation")


def test_counts_have_no_default() -> None:
    spec = ScenarioGroup.parse(scenariogroup()).spec
    assert (spec.replicas, spec.prefill.replicas, spec.decode.replicas) == (None, None, None)
    assert "replicas" not in spec.to_dict()


@pytest.mark.parametrize("kind", FULL)
def test_objects_with_every_field_are_written_as_they_were_read(kind: str) -> None:
    spec = BY_NAME[kind].parse(FULL[kind]).to_dict()["spec"]
    env = spec.get("prefill", {}).get("env", []) + spec.get("decode", {}).get("env", [])
    for variable in env:  # the parser fills in empty values, which the server leaves out
        if not variable["value"]:
            del variable["value"]
    assert _without_empty(spec) == FULL[kind]["spec"]


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_empty(v) for k, v in value.items() if v not in ([], {})}
    return [_without_empty(v) for v in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", BASES)
def test_round_trip(kind: str) -> None:
    model = BY_NAME[kind].parse(BASES[kind]())
    assert BY_NAME[kind].parse(model.to_dict()) == model
    assert model.to_dict()["metadata"] == {"name": BASES[kind]()["metadata"]["name"]}


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_examples_parse(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] in BY_NAME:
            BY_NAME[document["kind"]].parse(document)


def test_metadata_of_other_versions_is_ignored_and_not_written_back() -> None:
    metadata = {"name": "shop", "uid": "u1", "managedFields": [{"manager": "x"}], "selfLink": "/"}
    service = PDService.parse(pdservice() | {"metadata": metadata})
    assert service.metadata.uid == "u1"
    assert service.to_dict()["metadata"] == {"name": "shop", "uid": "u1"}


def test_status_of_another_version_is_read_without_its_unknown_fields() -> None:
    status = {"observedGeneration": 3, "newField": {"x": 1}, "scenarios": [{"name": "a", "y": 2}]}
    parsed = PDServiceStatus.parse(status)
    assert parsed.observed_generation == 3
    assert parsed.scenarios[0].name == "a"


def test_long_messages_in_status_are_cut_not_refused() -> None:
    counts = {"groups": 1, "prefill": 1, "decode": 1}
    decision = {
        "time": "2026-01-31T08:15:00Z",
        "from": counts,
        "to": counts,
        "outcome": "Held",
        "reason": "Steady",
        "message": "x" * 5000,
    }
    status = ScenarioGroupStatus.parse({"decisions": [decision]})
    assert len(status.decisions[0].message) == 1024
    assert status.decisions[0].message.endswith("...")
    assert status.to_dict()["decisions"][0]["from"] == counts


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("800ms", 0.8),
        ("1.5s", 1.5),
        ("10m", 600.0),
        ("0.001s", 0.001),
        ("1m30s", 90.0),
        ("1s500ms", 1.5),
        ("2000us", 0.002),
    ],
)
def test_durations(text: str, seconds: float) -> None:
    """K7.7."""
    assert Duration(text).seconds == pytest.approx(seconds)
    assert Duration(text) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "0ms",
        "-1s",
        "1h",
        "11m",
        "1e3s",
        "1.2345s",
        "1s\n",
        "800 ms",
        "9m61s",
        "PT1S",
        "1,5s",
        "1S",
        "ms1",
    ],
)  # fmt: skip
def test_bad_durations(text: str) -> None:
    with pytest.raises(ValueError, match="must be a positive duration"):
        Duration(text)


@pytest.mark.parametrize(("text", "bits"), [("400Gbps", 4e11), ("6.4Tbps", 6.4e12)])
def test_bandwidths(text: str, bits: float) -> None:
    assert Bandwidth(text).bits_per_second == pytest.approx(bits)


def test_models_cannot_be_changed_in_place() -> None:
    service = PDService.parse(pdservice())
    with pytest.raises(ValueError, match="frozen"):
        service.spec.gateway.port = 81


@pytest.mark.parametrize("value", [float("nan"), float("inf"), True, "0.2", 0, 0.0001, 1e9, None])
def test_a_number_is_finite_and_within_its_bounds(value: object) -> None:
    with pytest.raises(InvalidObjectError, match=r"must be a number from 0\.001 to 1000000"):
        PDService.parse(edited(pdservice(), {"spec.scenarios.0.expected.requestsPerSecond": value}))


def test_a_whole_number_is_stored_as_it_was_written() -> None:
    for value in (2, 0.2):
        made = edited(pdservice(), {"spec.scenarios.0.expected.requestsPerSecond": value})
        stored = PDService.parse(made).to_dict()["spec"]["scenarios"][0]["expected"]
        assert repr(stored["requestsPerSecond"]) == repr(value)


CONDITION = {
    "type": "Ready", "status": "True", "reason": "Serving", "message": "",
    "lastTransitionTime": "2026-01-31T08:15:00Z", "observedGeneration": 1,
}  # fmt: skip
STATUS: dict[str, dict[str, Any]] = {
    "PDService": {"conditions": [CONDITION], "scenarios": [{"name": "a"}, {"name": "b"}]},
    "ScenarioGroup": {
        "conditions": [CONDITION],
        "decisions": [
            {
                "time": "2026-01-31T08:15:00Z", "outcome": "Applied", "reason": "Steady",
                "from": {"groups": 1, "prefill": 1, "decode": 1},
                "to": {"groups": 2, "prefill": 1, "decode": 1},
            }
        ],
        "replicas": 1,
    },
    "RoCEDomain": {"conditions": [CONDITION], "free": [{"resource": "a.b/c", "devices": 1}]},
}  # fmt: skip


@pytest.mark.parametrize("kind", STATUS)
def test_a_part_of_a_status_that_cannot_be_read_is_left_out(kind: str) -> None:
    """The operator's own word, or another version's: it never keeps an object from being read."""
    model: Any = BY_NAME[kind]
    whole = FULL[kind] | {"status": STATUS[kind]}
    honest = model.stored(whole)
    assert honest == model.parse(whole)
    for path in places(whole["status"]):
        for value in (*VALUES, deep()):
            read = model.stored(put(whole, ("status", *path), value))
            assert read.spec == honest.spec
            if path and path[0] != "conditions":
                assert read.status.conditions == honest.status.conditions
    for value in VALUES:
        with pytest.raises(InvalidObjectError, match="spec"):
            model.stored({**whole, "spec": value, "status": value})


def test_a_template_is_bounded_in_depth() -> None:
    value = scenariogroup()
    for levels in (65, 900, 3000):
        template = {"spec": {"x": deep(levels)}}
        value["spec"]["prefill"]["template"] = template
        with pytest.raises(
            InvalidObjectError, match=r"template\.spec: .* must not be nested deeper than 64"
        ):
            ScenarioGroup.parse(value)
    value["spec"]["prefill"]["template"] = {"spec": {"x": deep(63)}}
    ScenarioGroup.parse(value)
