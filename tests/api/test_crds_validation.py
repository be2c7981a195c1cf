"""The CRDs on a real API server: what it accepts, and what it refuses with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.api_objects import BAD, BASES, Bad, edited, pdservice, role, scenario
from tests.support.crds import collection
from tests.support.rest import Rest

from pdserve.api import KINDS

pytestmark = pytest.mark.api
EXAMPLES = Path(__file__).parents[2] / "examples"


def dry_run(rest: Rest, obj: dict[str, Any]) -> Any:
    return rest.create(collection(obj["kind"]), obj, dryRun="All")


@pytest.mark.parametrize("kind", BASES)
def test_base_objects_are_accepted(rest: Rest, kind: str) -> None:
    answer = dry_run(rest, BASES[kind]())
    assert answer.code == 201, answer.body


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.yaml")), ids=lambda p: p.name)
def test_examples_are_accepted_and_parse(rest: Rest, path: Path) -> None:
    kinds = {kind.info.name: kind for kind in KINDS}
    for document in yaml.safe_load_all(path.read_text()):
        if document["kind"] not in kinds:
            continue
        answer = dry_run(rest, document)
        assert answer.code == 201, answer.body
        parsed = kinds[document["kind"]].parse(document).to_dict()
        stored = kinds[document["kind"]].parse(answer.body).to_dict()
        assert parsed["spec"] == stored["spec"], "server and parser fill in the same defaults"


@pytest.mark.parametrize(
    ("name", "edits"),
    [
        ("longest names", {"metadata.name": "a" * 30, "spec.scenarios.0.name": "s" * 20}),
        ("one catch-all scenario", {"spec.scenarios": [scenario("all", match={})]}),
        ("a catch-all at the end", {"spec.scenarios.1.match": {"models": []}}),
        ("same model, other header", {"spec.scenarios.0.match": {"models": ["m"]}}),
        ("no budget", {"spec.budget": []}),
        ("budget exactly the minimum", {"spec.budget.0.devices": 4}),
        ("fixed kept in Auto", {"spec.scenarios.0.ratio.fixed": dict.fromkeys(
            ("groups", "prefill", "decode"), 1)}),
        ("locality by level", {"spec.fabric.locality": {"mode": "Required", "level": "leaf"}}),
        ("32 scenarios", {"spec.scenarios": [scenario(f"s{i}") for i in range(32)]}),
        ("longest durations", {"spec.scenarios.0.slo.ttft": "10m",
                               "spec.scenarios.0.slo.tpot": "0.001s"}),
        ("arguments that only begin alike", {"spec.prefill.args": ["--slots-log=9", "--pace"]}),
        ("any pod template", {"spec.decode": role(template={
            "metadata": {"annotations": {"a": "b"}},
            "spec": {"tolerations": [{"operator": "Exists"}], "anything": {"nested": [1]}}})}),
    ],
)  # fmt: skip
def test_unusual_but_right_services_are_accepted(
    rest: Rest, name: str, edits: dict[str, Any]
) -> None:
    answer = dry_run(rest, edited(pdservice(), edits))
    assert answer.code == 201, answer.body


def test_the_table_is_long_enough() -> None:
    assert len(BAD) >= 45
    assert len({case.name for case in BAD}) >= len(BAD) - 3


@pytest.mark.parametrize("case", BAD, ids=lambda c: f"{c.kind}: {c.name}")
def test_bad_objects_are_refused_at_the_field_with_what_would_be_right(
    rest: Rest, case: Bad
) -> None:
    answer = dry_run(rest, case.object)
    assert answer.code == case.code, answer.body
    if case.code == 400:  # strict decoding names unknown fields in its message only
        assert f'unknown field "{case.field}"' in answer.body["message"]
        return
    told = [message for field, message in answer.causes if field == case.field]
    assert told, answer.causes
    assert any(case.says in message for message in told), told
    # The server checks the path of `/scale` once more, and writes that path with a dot before it.
    named = {
        f.lstrip(".") for f, m in answer.causes if "some validation rules were not checked" not in m
    }
    assert named == {case.field}, "one thing is wrong, so one field is named"


def test_pod_templates_keep_fields_that_this_api_does_not_describe(rest: Rest) -> None:
    spec = {"containers": [{"name": "engine", "securityContext": {"privileged": False}}]}
    obj = edited(pdservice(), {"spec.prefill.template": {"spec": spec}})
    assert dry_run(rest, obj).body["spec"]["prefill"]["template"] == {"spec": spec}
