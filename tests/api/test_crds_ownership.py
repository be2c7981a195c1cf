"""One owner of the three counts per ratio mode, and switches that drop or reset nothing.

Each test plays the operator (two field managers, `pdserve.api.ownership`), an autoscaler, and a
person with kubectl, against a real API server.
"""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.api_objects import edited, scenariogroup
from tests.support.crds import collection
from tests.support.rest import Answer, Rest

from pdserve.api import DecisionCounts, ScenarioGroup
from pdserve.api.ownership import COUNTS_MANAGER, SPEC_MANAGER, counts_apply, same_spec, spec_apply

pytestmark = pytest.mark.api


class Played:
    """One ScenarioGroup and all its writers."""

    def __init__(self, rest: Rest, namespace: str) -> None:
        self.rest, self.namespace = rest, namespace
        self.path = f"{collection('ScenarioGroup', namespace)}/shop-chat"
        created = rest.create(
            collection("ScenarioGroup", namespace),
            spec_apply(ScenarioGroup.parse(scenariogroup())),
            fieldManager=SPEC_MANAGER,
        )
        assert created.code == 201, created.body
        self.uid = created.body["metadata"]["uid"]

    def operator_applies_spec(self, edits: dict[str, Any] | None = None) -> Answer:
        group = ScenarioGroup.parse(edited(scenariogroup(), edits or {}))
        return self.rest.apply(self.path, spec_apply(group), SPEC_MANAGER)

    def operator_applies_counts(self, groups: int, prefill: int, decode: int) -> Answer:
        counts = DecisionCounts(groups=groups, prefill=prefill, decode=decode)
        body = counts_apply("shop-chat", self.namespace, self.uid, counts)
        return self.rest.apply(self.path, body, COUNTS_MANAGER)

    def autoscaler_sets(self, groups: int) -> None:
        scale = self.rest.get(f"{self.path}/scale").body
        scale["spec"]["replicas"] = groups
        answer = self.rest.call("PUT", f"{self.path}/scale", scale, fieldManager="hpa")
        assert answer.code == 200, answer.body

    @property
    def object(self) -> dict[str, Any]:
        return self.rest.get(self.path).body

    @property
    def counts(self) -> tuple[int | None, int | None, int | None]:
        spec = self.object["spec"]
        return spec.get("replicas"), spec["prefill"].get("replicas"), spec["decode"].get("replicas")

    def owners(self, *path: str) -> set[str]:
        """Managers of a field of spec."""
        owners = set()
        for entry in self.object["metadata"]["managedFields"]:
            node: Any = entry["fieldsV1"].get("f:spec")
            for part in path:
                node = node.get(f"f:{part}") if isinstance(node, dict) else None
            if node is not None:
                owners.add(entry["manager"])
        return owners

    @property
    def owners_of_counts(self) -> list[set[str]]:
        return [self.owners(*p) for p in COUNT_PATHS]


COUNT_PATHS = (("replicas",), ("prefill", "replicas"), ("decode", "replicas"))


@pytest.fixture
def group(rest: Rest) -> Played:
    made = rest.create("/api/v1/namespaces", {"metadata": {"generateName": "owner-"}})
    return Played(rest, made.body["metadata"]["name"])


def test_auto_the_operator_alone_owns_the_counts(group: Played) -> None:
    assert group.counts == (None, None, None), "no count before its owner sets it"
    group.operator_applies_counts(2, 3, 4)
    group.operator_applies_spec()
    assert group.counts == (2, 3, 4)
    assert group.owners_of_counts == [{COUNTS_MANAGER}] * 3


def test_changing_the_rest_of_the_spec_leaves_the_counts(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    group.operator_applies_spec({"spec.prefill.maxConcurrency": 9, "spec.model.name": "other"})
    assert group.counts == (2, 3, 4)
    assert group.object["spec"]["prefill"]["maxConcurrency"] == 9


def test_auto_to_external_drops_and_resets_nothing(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    for _ in range(3):  # External: the operator goes on applying the spec, no counts
        assert group.operator_applies_spec().code == 200
    assert group.counts == (2, 3, 4)
    group.autoscaler_sets(5)
    group.operator_applies_spec({"spec.recovery": {"drainSeconds": 5}})
    assert group.counts == (5, 3, 4), "what the autoscaler set stays"
    assert group.owners("replicas") == {"hpa"}


def test_external_to_auto_takes_all_three_back(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    group.autoscaler_sets(5)
    assert group.operator_applies_counts(*(5, 3, 4)).code == 200
    assert group.counts == (5, 3, 4), "taking over changes nothing by itself"
    group.operator_applies_counts(3, 2, 2)
    assert group.counts == (3, 2, 2)
    assert group.owners_of_counts == [{COUNTS_MANAGER}] * 3


def test_round_trip_of_modes_keeps_every_count_at_every_step(group: Played) -> None:
    seen = []
    group.operator_applies_counts(2, 3, 4)  # Auto
    seen.append(group.counts)
    group.operator_applies_spec()  # External
    seen.append(group.counts)
    group.autoscaler_sets(4)
    seen.append(group.counts)
    group.operator_applies_spec()
    seen.append(group.counts)
    group.operator_applies_counts(4, 3, 4)  # Auto again: starts from what it finds
    seen.append(group.counts)
    assert seen == [(2, 3, 4), (2, 3, 4), (4, 3, 4), (4, 3, 4), (4, 3, 4)]


def test_a_person_in_external_owns_what_they_set(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    patch = {"spec": {"replicas": 3, "decode": {"replicas": 6}}}
    group.rest.patch(group.path, patch, fieldManager="kubectl-edit")
    group.operator_applies_spec()
    assert group.counts == (3, 3, 6)
    assert group.owners_of_counts == [{"kubectl-edit"}, {COUNTS_MANAGER}, {"kubectl-edit"}]


def test_a_hand_edit_in_auto_is_undone_by_the_next_apply(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    group.rest.patch(group.path, {"spec": {"replicas": 9}}, fieldManager="kubectl-edit")
    assert group.counts == (9, 3, 4)
    group.operator_applies_counts(2, 3, 4)
    assert group.counts == (2, 3, 4)
    assert group.owners("replicas") == {COUNTS_MANAGER}


def test_a_second_applier_is_reported_about_the_owner(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    counts = DecisionCounts(groups=9, prefill=3, decode=4)
    body = counts_apply("shop-chat", group.namespace, group.uid, counts)
    answer = group.rest.apply(group.path, body, "gitops", force=False)
    assert answer.code == 409
    assert COUNTS_MANAGER in answer.body["message"]
    assert ".spec.replicas" in answer.body["message"]


def test_applying_the_same_counts_again_writes_nothing(group: Played) -> None:
    group.operator_applies_counts(2, 3, 4)
    group.operator_applies_spec()
    before = group.object["metadata"]
    group.operator_applies_counts(2, 3, 4)
    group.operator_applies_spec()
    after = group.object["metadata"]
    assert after["resourceVersion"] == before["resourceVersion"]
    assert after["generation"] == before["generation"]


def test_counts_are_never_applied_to_a_namesake(group: Played) -> None:
    body = counts_apply("shop-chat", group.namespace, "another-uid",
                        DecisionCounts(groups=9, prefill=9, decode=9))  # fmt: skip
    answer = group.rest.apply(group.path, body, COUNTS_MANAGER)
    assert answer.code in (409, 422)
    assert group.counts == (None, None, None)


def test_what_the_service_no_longer_has_is_removed_from_the_group(group: Played) -> None:
    optional = {"spec.decode.template": {"spec": {"priorityClassName": "high"}}}
    group.rest.call("DELETE", group.path)
    wanted = ScenarioGroup.parse(edited(scenariogroup(), optional))
    group.rest.apply(group.path, spec_apply(wanted), SPEC_MANAGER)
    live = ScenarioGroup.parse(group.object)
    assert same_spec(live, wanted)
    assert not same_spec(live, ScenarioGroup.parse(scenariogroup())), "a removal is a difference"
    group.operator_applies_spec()
    assert "template" not in group.object["spec"]["decode"]


def test_why_the_counts_have_a_manager_of_their_own(group: Played) -> None:
    """Were they part of one apply, leaving them out in External would delete them."""
    whole = spec_apply(ScenarioGroup.parse(scenariogroup()))
    with_counts = edited(whole, {"spec.replicas": 2})
    group.rest.apply(group.path, with_counts, "one-manager")
    assert group.counts[0] == 2
    group.rest.apply(group.path, whole, "one-manager")
    assert group.counts[0] is None
