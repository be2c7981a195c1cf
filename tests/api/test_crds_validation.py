"""The CRDs on a real API server: what it accepts, and what it refuses with which words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.api_bad import BAD
from tests.support.api_case import Bad
from tests.support.api_objects import BASES, FULL, GOOD, edited, mutants, pdservice
from tests.support.crds import collection
from tests.support.rest import Rest

from pdserve.api import KINDS, InvalidObjectError

pytestmark = pytest.mark.api
EXAMPLES = Path(__file__).parents[2] / "examples"


def dry_run(rest: Rest, obj: dict[str, Any]) -> Any:
    return rest.create(collection(obj["kind"]), obj, dryRun="All")


@pytest.mark.parametrize("kind", BASES)
def test_base_objects_are_accepted(rest: Rest, kind: str) -> None:
    answer = dry_run(rest, BASES[kind]())
    assert answer.code == 201, answer.body


@pytest.mark.parametrize("kind", FULL)
def test_objects_with_every_field_are_stored_as_written(rest: Rest, kind: str) -> None:
    answer = dry_run(rest, FULL[kind])
    assert answer.code == 201, answer.body
    assert answer.body["spec"] == FULL[kind]["spec"]


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


@pytest.mark.parametrize("name", GOOD)
def test_unusual_but_right_services_are_accepted(rest: Rest, name: str) -> None:
    answer = dry_run(rest, GOOD[name])
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
    # Causes without a field say that CEL rules were skipped because of this error. The path of
    # `/scale` is checked once more, and then written with a dot before it.
    named = {field.lstrip(".") for field, _ in answer.causes if field != "<nil>"}
    assert named == {case.field}, "one thing is wrong, so one field is named"


def test_pod_templates_keep_fields_that_this_api_does_not_describe(rest: Rest) -> None:
    spec = {"containers": [{"name": "engine", "securityContext": {"privileged": False}}]}
    obj = edited(pdservice(), {"spec.prefill.template": {"spec": spec}})
    assert dry_run(rest, obj).body["spec"]["prefill"]["template"] == {"spec": spec}


@pytest.mark.parametrize("kind", BASES)
def test_server_and_parser_agree_on_random_changes(rest: Rest, kind: str) -> None:
    """Anything the server stores the operator can read, and the other way round."""
    parse = {k.info.name: k.parse for k in KINDS}[kind]
    verdicts = []
    for change, obj in mutants(FULL[kind], seed=20260131, count=150):
        answer = dry_run(rest, obj)
        try:
            parse(obj)
            parsed = ""
        except InvalidObjectError as error:
            parsed = str(error)
        accepted = answer.code == 201
        assert accepted == (not parsed), f"{change}: server {answer.body}, parser {parsed!r}"
        verdicts.append(accepted)
    assert 5 < sum(verdicts) < 145, "the changes are neither all right nor all wrong"
