"""The revision changes with everything that changes a pod, and with nothing else."""

from __future__ import annotations

from typing import Any

import pytest
from tests.support.api_objects import edited, scenariogroup

from pdserve.api import ScenarioGroup, revision_of


def revision(edits: dict[str, Any] | None = None) -> str:
    return revision_of(ScenarioGroup.parse(edited(scenariogroup(), edits or {})).spec)


def test_revision_is_a_short_label_value() -> None:
    assert len(revision()) == 8
    assert revision().isalnum()


def test_revision_is_the_same_in_every_process() -> None:
    # A changed digest means that an operator upgrade rolls every group: do that on purpose only.
    assert revision() == "76e8e0fc"


@pytest.mark.invariant(2)
@pytest.mark.parametrize(
    "edits",
    [
        {"spec.replicas": 5},
        {"spec.prefill.replicas": 3},
        {"spec.decode.replicas": 4},
        {"spec.fabric.locality": {"mode": "Required", "level": "leaf"}},
        {"spec.recovery": {"drainSeconds": 5}},
        {"spec.prefill.startupDeadlineSeconds": 60},
        {"metadata.labels": {"a": "b"}},
        {"spec.prefill.args": []},
        {"spec.prefill.template": None},
    ],
    ids=str,
)
def test_what_leaves_running_pods_alone(edits: dict[str, Any]) -> None:
    assert revision(edits) == revision()


@pytest.mark.parametrize(
    "edits",
    [
        {"spec.model.name": "other"},
        {"spec.model.source": {"path": "/m"}},
        {"spec.model.source": {"path": "/m", "pvc": {"name": "weights"}}},
        {"spec.engine.image": "pdserve/engine:2"},
        {"spec.prefill.maxConcurrency": 5},
        {"spec.decode.maxConcurrency": 5},
        {"spec.prefill.args": ["--x"]},
        {"spec.decode.args": ["--x"]},
        {"spec.decode.env": [{"name": "A", "value": "1"}]},
        {"spec.decode.instance.devicesPerNode": 2},
        {"spec.decode.template": {"spec": {"priorityClassName": "high"}}},
        {"spec.fabric.domainRef.name": "az2"},
    ],
    ids=str,
)
def test_what_changes_pods(edits: dict[str, Any]) -> None:
    assert revision(edits) != revision()


def test_a_source_without_a_claim_is_what_it_was_before_there_were_claims() -> None:
    assert revision({"spec.model.source": {"path": "/m"}}) == "17572066"


def test_order_of_keys_in_a_template_does_not_matter() -> None:
    one = {"spec": {"a": 1, "b": {"c": 2, "d": 3}}}
    two = {"spec": {"b": {"d": 3, "c": 2}, "a": 1}}
    assert revision({"spec.decode.template": one}) == revision({"spec.decode.template": two})
