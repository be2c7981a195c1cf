"""Words a PDService's status from what its parts report. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pdserve.api import (
    DeviceUse,
    PDService,
    PDServiceStatus,
    RoleCount,
    Scenario,
    ScenarioGroup,
    ScenarioStatus,
    merge_conditions,
)
from pdserve.desired.decisions import counts_of, newest
from pdserve.desired.objects import url
from pdserve.desired.proposals import pending_of
from pdserve.desired.service_desired import acting_counts
from pdserve.desired.troubles import Trouble
from pdserve.groups.rollout import HELD
from pdserve.groups.types import ConditionState
from pdserve.terms import Role
from pdserve.terms.json import JsonObject
from pdserve.terms.times import rfc3339

_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Attainment:
    """What the ratio loop last measured for one scenario."""

    percent: float | None
    """Share of offered requests that met the SLO, two decimals, never rounded up; None: unknown."""
    note: str
    """Why it is unknown, or over how many requests it was measured."""


@dataclass(frozen=True, slots=True)
class ServiceSeen:
    """What the status is worded from."""

    service: PDService
    groups: Mapping[str, ScenarioGroup]
    """By scenario name; those that exist and are ours."""
    used: Mapping[str, int]
    """Devices that pods of this service hold, by resource."""
    template: ConditionState
    rotated: ConditionState | None
    """How far a rotation of credentials is; None: never asked for."""
    problems: Sequence[tuple[str, str]]
    """Reason and message of each thing that could not be done."""
    gateway_ready: int
    """Ready gateway pods."""
    attainment: Mapping[str, Attainment]
    """By scenario name."""
    troubles: Sequence[Trouble] = ()
    """What keeps pods of this service from running."""


def status_of(seen: ServiceSeen, now: float) -> JsonObject:
    """The status as JSON; `now` in seconds since the epoch."""
    service = seen.service
    conditions = merge_conditions(
        service.status.conditions, _conditions(seen), service.metadata.generation, now
    )
    status = PDServiceStatus(
        observed_generation=service.metadata.generation,
        conditions=conditions,
        url=url(service),
        devices=_devices(seen),
        scenarios=tuple(_scenario(seen, s) for s in service.spec.scenarios),
    )
    return status.to_dict()


def _conditions(seen: ServiceSeen) -> tuple[ConditionState, ...]:
    return (
        _ready(seen),
        _progressing(seen),
        _degraded(seen),
        _slo(seen),
        _advice(seen),
        _approval(seen),
        seen.template,
        *(() if seen.rotated is None else (seen.rotated,)),
    )


def _ready(seen: ServiceSeen) -> ConditionState:
    waiting = []
    for scenario in seen.service.spec.scenarios:
        group = seen.groups.get(scenario.name)
        state = None if group is None else _condition(group, "Ready")
        if state is None:
            waiting.append((scenario.name, "ScenarioMissing", "its ScenarioGroup is not there yet"))
        elif state[0] != "True":
            waiting.append((scenario.name, state[1], state[2]))
    if waiting:
        message = "; ".join(f"{name}: {why}" for name, _, why in waiting)
        return ConditionState("Ready", "False", waiting[0][1], message)
    if seen.gateway_ready == 0:
        return ConditionState("Ready", "False", "GatewayNotReady", "no gateway pod is ready")
    return ConditionState(
        "Ready", "True", "Serving", "every scenario has ready P/D groups and a gateway"
    )


def _progressing(seen: ServiceSeen) -> ConditionState:
    for scenario in seen.service.spec.scenarios:
        group = seen.groups.get(scenario.name)
        state = None if group is None else _condition(group, "Progressing")
        if state is None or state[0] == "True":
            why = "" if state is None else state[2]
            reason = "Creating" if state is None else state[1]
            return ConditionState(
                "Progressing", "True", reason, f"{scenario.name}: {why}".rstrip(": ")
            )
    if seen.gateway_ready < seen.service.spec.gateway.replicas:
        ready, wanted = seen.gateway_ready, seen.service.spec.gateway.replicas
        return ConditionState(
            "Progressing", "True", "GatewayRollout", f"{ready} of {wanted} gateway pods are ready"
        )
    for scenario in seen.service.spec.scenarios:
        group = seen.groups.get(scenario.name)
        state = None if group is None else _condition(group, "Progressing")
        if state is not None and state[1] in HELD:
            return ConditionState("Progressing", "False", state[1], f"{scenario.name}: {state[2]}")
    return ConditionState("Progressing", "False", "Settled", "nothing is being changed")


def _degraded(seen: ServiceSeen) -> ConditionState:
    if seen.template.status == "False":
        return ConditionState("Degraded", "True", "TemplateInvalid", seen.template.message)
    if seen.problems:
        message = "; ".join(m for _, m in seen.problems)
        return ConditionState("Degraded", "True", seen.problems[0][0], message)
    for scenario in seen.service.spec.scenarios:
        group = seen.groups.get(scenario.name)
        placed = None if group is None else _condition(group, "Placed")
        if placed is not None and placed[0] == "False":
            return ConditionState("Degraded", "True", placed[1], f"{scenario.name}: {placed[2]}")
    if seen.troubles:
        told = list(dict.fromkeys(t.message for t in seen.troubles))
        more = f" (and {len(told) - _SHOWN} more)" if len(told) > _SHOWN else ""
        message = "; ".join(told[:_SHOWN]) + more
        return ConditionState("Degraded", "True", seen.troubles[0].reason, message)
    return ConditionState("Degraded", "False", "AsWanted", "")


def _slo(seen: ServiceSeen) -> ConditionState:
    missed, unknown = [], []
    for scenario in seen.service.spec.scenarios:
        found = seen.attainment.get(scenario.name)
        if found is None or found.percent is None:
            unknown.append(f"{scenario.name}: {found.note if found else 'not measured yet'}")
        elif found.percent < scenario.slo.attainment_percent:
            missed.append(
                f"{scenario.name}: {found.percent:g}% of offered requests, "
                f"target {scenario.slo.attainment_percent:g}%"
            )
    if missed:
        return ConditionState("SLOMet", "False", "BelowTarget", "; ".join(missed))
    if unknown:
        return ConditionState("SLOMet", "Unknown", "NotMeasured", "; ".join(unknown))
    return ConditionState("SLOMet", "True", "AtTarget", "every scenario reaches its target")


def _advice(seen: ServiceSeen) -> ConditionState:
    for scenario in seen.service.spec.scenarios:
        group = seen.groups.get(scenario.name)
        last = None if group is None else newest(group)
        if group is None or last is None or last.outcome != "Advised":
            continue
        if counts_of(last) != acting_counts(group, scenario, owned=True):
            message = f"{scenario.name}: {counts_of(last)} is advised: {last.message}"
            return ConditionState("AdviceAvailable", "True", last.reason, message)
    return ConditionState("AdviceAvailable", "False", "NoAdvice", "")


def _approval(seen: ServiceSeen) -> ConditionState:
    """What waits for a person."""
    waiting = []
    for scenario in seen.service.spec.scenarios:
        group = seen.groups.get(scenario.name)
        pending = None if group is None else pending_of(group)
        if pending is not None and not pending.rejected and scenario.ratio.mode == "Approve":
            said = f"{scenario.name}: {pending.before} -> {pending.to} waits until "
            waiting.append((pending.reason, f"{said}{rfc3339(pending.expires)} ({pending.id})"))
    if not waiting:
        return ConditionState("ApprovalPending", "False", "NoProposal", "")
    told = "; ".join(text for _, text in waiting)
    return ConditionState("ApprovalPending", "True", str(waiting[0][0]), told)


def _scenario(seen: ServiceSeen, scenario: Scenario) -> ScenarioStatus:
    group = seen.groups.get(scenario.name)
    found = seen.attainment.get(scenario.name)
    percent = None if found is None or found.percent is None else int(found.percent)
    if group is None:
        return ScenarioStatus(name=scenario.name, attainment_percent=percent)
    return ScenarioStatus(
        name=scenario.name,
        groups=group.status.ready_replicas,
        prefill=_role(group, scenario, "prefill"),
        decode=_role(group, scenario, "decode"),
        attainment_percent=percent,
        last_decision=newest(group),
    )


def _role(group: ScenarioGroup, scenario: Scenario, role: Role) -> RoleCount:
    counts = acting_counts(group, scenario, owned=True)
    shown = (g.prefill if role == "prefill" else g.decode for g in group.status.groups)
    return RoleCount(
        desired=0 if counts is None else counts.total(role), ready=sum(r.ready for r in shown)
    )


def _devices(seen: ServiceSeen) -> tuple[DeviceUse, ...]:
    spec = seen.service.spec
    budgets = {b.resource: b.devices for b in spec.budget}
    resources = {spec.prefill.instance.resource, spec.decode.instance.resource, *seen.used}
    return tuple(
        DeviceUse(resource=r, used=seen.used.get(r, 0), budget=budgets.get(r))
        for r in sorted(resources)
    )


def _condition(group: ScenarioGroup, kind: str) -> tuple[str, str, str] | None:
    """Status, reason and message, only if found for the present generation."""
    for condition in group.status.conditions:
        if condition.type == kind:
            if condition.observed_generation < group.metadata.generation:
                return (
                    "False" if kind == "Ready" else "True",
                    "Observing",
                    "a change is being read",
                )
            return (condition.status, condition.reason, condition.message)
    return None
