"""The table of bad objects: what is wrong, where it is reported, and what the answer says.

The same table is put to the parser (unit tests) and to a real API server (API tests), so that
both refuse the same objects at the same field. PDServices: `api_bad_services`,
`api_bad_models`, `api_bad_scenarios`, `api_bad_schedules`,
`api_bad_approvals`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.support.api_bad_approvals import BAD_APPROVALS
from tests.support.api_bad_models import BAD_MODELS
from tests.support.api_bad_rollouts import BAD_ROLLOUTS
from tests.support.api_bad_scenarios import BAD_SCENARIOS
from tests.support.api_bad_schedules import BAD_SCHEDULES
from tests.support.api_bad_services import BAD_SERVICES
from tests.support.api_case import Bad
from tests.support.api_objects import GONE


def _group(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    return Bad(name, "ScenarioGroup", edits, at, says, **extra)


def _domain(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    return Bad(name, "RoCEDomain", edits, at, says, **extra)


BAD_GROUPS = (
    _group("name of 52 characters", {"metadata.name": "a" * 52}, "metadata.name", "at most 51"),
    _group(
        "service of 31 characters",
        {"spec.service": "a" * 31},
        "spec.service",
        "may not be more than 30",
    ),
    _group("no scenario", {"spec.scenario": GONE}, "spec.scenario", "Required value"),
    _group("negative groups", {"spec.replicas": -1}, "spec.replicas", "equal to 0"),
    _group("too many groups", {"spec.replicas": 65}, "spec.replicas", "equal to 64"),
    _group(
        "no prefill instance", {"spec.prefill.replicas": 0}, "spec.prefill.replicas", "equal to 1"
    ),
    _group(
        "too many decode instances",
        {"spec.decode.replicas": 65},
        "spec.decode.replicas",
        "equal to 64",
    ),
    _group(
        "the model's name as an argument",
        {"spec.decode.args": ["--model-name", "x"]},
        "spec.decode.args",
        "model.name for the model's name",
    ),
    _group(
        "a template beside metadata and spec",
        {"spec.decode.template": {"status": {}}},
        "spec.decode.template.status",
        "unknown field",
        code=400,
    ),
)

_LEVELS = "spec.levels"

BAD_DOMAINS = (
    _domain("no selector", {"spec.nodeSelector": GONE}, "spec.nodeSelector", "Required value"),
    _domain(
        "an empty selector",
        {"spec.nodeSelector": {"matchLabels": {}}},
        "spec.nodeSelector.matchLabels",
        "should have at least 1 properties",
    ),
    _domain(
        "a label key with a space",
        {"spec.nodeSelector": {"matchLabels": {"a b": "c"}}},
        "spec.nodeSelector.matchLabels",
        "every key must be a label key such as",
    ),
    _domain("no level", {_LEVELS: []}, _LEVELS, "at least 1 items"),
    _domain(
        "nine levels",
        {_LEVELS: [{"name": f"l{i}", "nodeLabel": f"x/l{i}", "hopCost": 1} for i in range(9)]},
        _LEVELS,
        "must have at most 8 items",
    ),
    _domain(
        "a level's name twice",
        {"spec.levels.1.name": "leaf"},
        "spec.levels[1]",
        "Duplicate value",
        parser_field=_LEVELS,
    ),
    _domain(
        "a label twice",
        {"spec.levels.1.nodeLabel": "fabric.pdserve.io/leaf"},
        _LEVELS,
        "every level needs a nodeLabel of its own",
    ),
    _domain(
        "the node as an outer level",
        {
            "spec.levels.0.nodeLabel": "kubernetes.io/hostname",
            "spec.levels.2.nodeLabel": "fabric.pdserve.io/leaf",
        },
        _LEVELS,
        "must be the last (innermost) level",
    ),
    _domain(
        "levels from the innermost",
        {"spec.levels.0.hopCost": 1},
        _LEVELS,
        "levels are listed from the outermost to the innermost",
    ),
    _domain(
        "a negative cost",
        {"spec.levels.2.hopCost": -1},
        "spec.levels[2].hopCost",
        "greater than or equal to 0",
    ),
    _domain(
        "bandwidth in bytes",
        {"spec.levels.0.uplink": {"bandwidth": "800GB"}},
        "spec.levels[0].uplink.bandwidth",
        "must be a positive bandwidth, such as 400Gbps or 6.4Tbps",
    ),
    _domain(
        "no bandwidth",
        {"spec.levels.0.uplink": {"bandwidth": "0Gbps"}},
        "spec.levels[0].uplink.bandwidth",
        "must be a positive bandwidth",
    ),
    _domain(
        "a notice of nothing",
        {"spec.endNotices": [{"seconds": 30}]},
        "spec.endNotices[0]",
        "must name either a taint or a condition",
    ),
    _domain(
        "a notice of two things",
        {"spec.endNotices": [{"taint": "a/b", "condition": "C", "seconds": 30}]},
        "spec.endNotices[0]",
        "must name either a taint or a condition",
    ),
    _domain(
        "a notice that comes too late",
        {"spec.endNotices": [{"taint": "a/b", "seconds": 0}]},
        "spec.endNotices[0].seconds",
        "greater than or equal to 1",
    ),
    _domain(
        "a notice without its time",
        {"spec.endNotices": [{"taint": "a/b"}]},
        "spec.endNotices[0].seconds",
        "Required value",
    ),
    _domain(
        "a condition with a space",
        {"spec.endNotices": [{"condition": "going away", "seconds": 30}]},
        "spec.endNotices[0].condition",
        "must be the type of a condition",
    ),
    _domain(
        "a condition with a space that degrades",
        {"spec.degradedConditions": ["not well"]},
        "spec.degradedConditions[0]",
        "must be the type of a condition",
    ),
    _domain(
        "too many notices",
        {"spec.endNotices": [{"taint": f"a/b{i}", "seconds": 30} for i in range(33)]},
        "spec.endNotices",
        "must have at most 32 items",
    ),
    _domain(
        "an override of no level",
        {"spec.overrides": [{"level": "spine", "value": "s1", "cordoned": True}]},
        "spec.overrides",
        "level must be the name of one of spec.levels",
    ),
    _domain(
        "an override twice",
        {"spec.overrides": [{"level": "leaf", "value": "a", "cordoned": c} for c in (True, False)]},
        "spec.overrides[1]",
        "Duplicate value",
        parser_field="spec.overrides",
    ),
    _domain(
        "an override without a decision",
        {"spec.overrides": [{"level": "leaf", "value": "a"}]},
        "spec.overrides[0].cordoned",
        "Required value",
    ),
    _domain(
        "cordoned as a number",
        {"spec.overrides": [{"level": "leaf", "value": "a", "cordoned": 1}]},
        "spec.overrides[0].cordoned",
        "must be of type boolean",
    ),
    _domain(
        "unknown policy",
        {"spec.missingLabelPolicy": "Ignore"},
        "spec.missingLabelPolicy",
        '"Exclude", "UnknownDomain"',
    ),
    _domain(
        "unknown address source",
        {"spec.addressSource": "Multus"},
        "spec.addressSource",
        '"NodeAnnotation"',
    ),
)

BAD = (
    *BAD_SERVICES, *BAD_ROLLOUTS, *BAD_MODELS, *BAD_SCENARIOS, *BAD_SCHEDULES, *BAD_APPROVALS,
    *BAD_GROUPS, *BAD_DOMAINS,
)  # fmt: skip
