"""Words a ScenarioGroup's status from its plan. Pure.

`decisions` is left out: the ratio loop and the PDService reconciler write that list alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pdserve.api import Scenario, ScenarioGroup, merge_conditions
from pdserve.desired import rollouts
from pdserve.desired.claim_entries import to_json
from pdserve.desired.service_desired import bounds_of
from pdserve.groups.instances import InstanceObs
from pdserve.groups.types import ConditionState, GroupSummary, Plan, Repair
from pdserve.ratio.types import Counts
from pdserve.terms.json import JsonObject
from pdserve.terms.times import rfc3339
from pdserve.wire import names


def selector(group: ScenarioGroup) -> str:
    """Matches one pod per P/D group, so that an autoscaler on `/scale` counts P/D groups."""
    spec = group.spec
    return (
        f"{names.LABEL_SERVICE}={spec.service},{names.LABEL_SCENARIO}={spec.scenario},"
        f"{names.LABEL_SCALE_UNIT}=true"
    )


def ratio_condition(counts: Counts | None, scenario: Scenario | None) -> tuple[ConditionState, ...]:
    """Condition RatioInBounds by the PDService's scenario; none for one written by hand."""
    if scenario is None or counts is None:
        return ()
    bounds = bounds_of(scenario)
    if bounds.clamp(counts) == counts:
        return (
            ConditionState("RatioInBounds", "True", "InBounds", f"{counts} is within the bounds"),
        )
    message = f"{counts} is outside the bounds; the nearest inside is {bounds.clamp(counts)}"
    return (ConditionState("RatioInBounds", "False", "OutOfBounds", message),)


def degraded_condition(
    group: ScenarioGroup, refused: Sequence[tuple[str, str]]
) -> tuple[ConditionState, ...]:
    """Condition Degraded, by reason and message of refused objects; none if there never were.

    Instances serve without these objects: a ControllerRevision or a PodDisruptionBudget.
    """
    if refused:
        message = "; ".join(message for _, message in refused)
        return (ConditionState("Degraded", "True", refused[0][0], message),)
    if any(c.type == "Degraded" for c in group.status.conditions):
        return (ConditionState("Degraded", "False", "AsWanted", ""),)
    return ()


def status_of(
    group: ScenarioGroup,
    plan: Plan,
    planned: tuple[ConditionState, ...],
    instances: tuple[InstanceObs, ...],
    fabric: Mapping[str, str],
    now: float,
) -> JsonObject:
    """The status after a plan, as JSON; equal to the one before when nothing changed.

    `planned` are the plan's conditions and what the executor adds to them; `fabric` the RoCEDomain
    as it is now, empty where it is not there.
    """
    return {
        "observedGeneration": group.metadata.generation,
        "replicas": len({i.group_index for i in instances}),
        "readyReplicas": sum(1 for g in plan.groups if _complete(g)),
        "selector": selector(group),
        "groups": [_group(g) for g in plan.groups],
        "repairs": [_repair(r) for r in plan.repairs],
        "claims": to_json(plan.claims),
        "rollout": rollouts.to_json(plan.rollout),
        "conditions": _conditions(group, planned, now),
        **({"fabric": dict(fabric)} if fabric else {}),
    }


def waiting_status(
    group: ScenarioGroup, conditions: tuple[ConditionState, ...], now: float
) -> JsonObject:
    """The status while no plan can be made: the groups last seen stay, the conditions say why."""
    return {
        "observedGeneration": group.metadata.generation,
        "selector": selector(group),
        "conditions": _conditions(group, conditions, now),
    }


def not_ready(reason: str, message: str) -> tuple[ConditionState, ...]:
    """Conditions of a ScenarioGroup for which no plan can be made."""
    return (
        ConditionState("Placed", "False", reason, message),
        ConditionState("Progressing", "False", reason, message),
        ConditionState("Ready", "False", reason, message),
    )


def _conditions(
    group: ScenarioGroup, planned: tuple[ConditionState, ...], now: float
) -> list[JsonObject]:
    merged = merge_conditions(group.status.conditions, planned, group.metadata.generation, now)
    return [c.to_dict() for c in merged]


def _complete(group: GroupSummary) -> bool:
    return (
        group.prefill_ready >= group.prefill_desired > 0
        and group.decode_ready >= group.decode_desired > 0
    )


def _group(group: GroupSummary) -> JsonObject:
    return {
        "index": group.index,
        "revision": group.revision,
        "prefill": {"desired": group.prefill_desired, "ready": group.prefill_ready},
        "decode": {"desired": group.decode_desired, "ready": group.decode_ready},
        **(
            {"spares": {"desired": group.spares_desired, "ready": group.spares_ready}}
            if group.spares_desired
            else {}
        ),
        "cells": list(group.cells),
        "crossLeafPercent": group.cross_leaf_percent,
        "tableVersion": group.table_version,
    }


def _repair(repair: Repair) -> JsonObject:
    status: JsonObject = {
        "slot": repair.slot,
        "failures": repair.failures,
        "lastFailureTime": rfc3339(repair.last_failure),
        "fault": repair.fault,
    }
    if repair.suspect_node:
        status["suspectNode"] = repair.suspect_node
        status["suspects"] = [
            {"node": s.node, "time": rfc3339(s.time), "fault": s.fault} for s in repair.suspects
        ]
    if repair.not_before:
        status["notBeforeTime"] = rfc3339(repair.not_before)
    if repair.message:
        status["message"] = repair.message
    if repair.last_uid:
        status["lastUid"] = repair.last_uid
    return status
