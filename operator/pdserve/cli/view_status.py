"""One screen on a PDService: is it up, does it hold its SLO, what is where. Wording only."""

from __future__ import annotations

from pdserve import api
from pdserve.cli.approval import render_proposals
from pdserve.cli.columns import age, table
from pdserve.cli.snapshot import Snapshot
from pdserve.cli.view_schedule import render_schedules
from pdserve.groups.instances import InstanceObs
from pdserve.groups.observe import NotOurs, instance_obs, joined
from pdserve.terms.times import epoch_of
from pdserve.topology import pod_view


def render(snapshot: Snapshot, now: float) -> str:
    """The screen; `now` in seconds since the epoch."""
    service = snapshot.service
    parts = [
        _headline(service, now),
        table(_SCENARIO_HEAD, [_scenario_row(service, s, snapshot, now) for s in _names(service)]),
        render_proposals(snapshot, now),
        render_schedules(service, None, now),
        table(_GROUP_HEAD, [row for g in snapshot.groups for row in _group_rows(g)]),
        table(_INSTANCE_HEAD, [_instance_row(i, now) for i in instances(snapshot, now)]),
    ]
    return "\n\n".join(part for part in parts if part)


def instances(snapshot: Snapshot, now: float) -> list[InstanceObs]:
    """The service's instances by scenario order, then group, prefill first, then name.

    `now`: seconds since the epoch.
    """
    parts: list[InstanceObs] = []
    scenarios: dict[str, str] = {}
    for pod in snapshot.pods:
        try:
            part = instance_obs(pod_view(pod), None, now)
        except NotOurs:
            continue
        scenarios[part.name] = pod["metadata"]["labels"].get("pdserve.io/scenario", "")
        parts.append(part)
    order = {s: i for i, s in enumerate(_names(snapshot.service))}
    return sorted(
        joined(parts),
        key=lambda i: (
            order.get(scenarios[i.name], 99), i.group_index, i.role[0] != "p", i.name
        ),
    )  # fmt: skip


def state_of(instance: InstanceObs) -> str:
    """Where an instance is in its life, one word and sometimes why."""
    if instance.terminating:
        return "Terminating"
    if instance.drain_started is not None:
        return "Draining"
    if instance.fault is not None and instance.fault not in ("NodeDeleted", "NodeLost"):
        return f"Faulty: {instance.fault}"
    if instance.ready and instance.linked:
        return "Ready"
    if instance.linked:
        return "Linked"
    if instance.running:
        return "Linking"
    return "Starting" if instance.bound else "Pending"


_SCENARIO_HEAD = ("SCENARIO", "MODE", "GROUPS", "PREFILL", "DECODE", "SLO", "LAST DECISION")
_GROUP_HEAD = ("P/D GROUP", "REVISION", "PREFILL", "DECODE", "TABLE", "CROSS-LEAF", "CELLS")
_INSTANCE_HEAD = ("INSTANCE", "ROLE", "NODE", "STATE", "RESTARTS", "AGE")


def _names(service: api.PDService) -> list[str]:
    return [s.name for s in service.spec.scenarios]


def _headline(service: api.PDService, now: float) -> str:
    meta, status = service.metadata, service.status
    lines = [f"PDService {meta.namespace}/{meta.name}   model {service.spec.model.name}"]
    if status.url:
        lines[0] += f"   {status.url}"
    lines += [
        f"  {c.type}={c.status}  {c.reason}  {c.message}".rstrip() for c in status.conditions
    ] or ["  the operator has not seen it yet: is it running? (kubectl get pods -A)"]
    for d in status.devices:
        limit = f" of {d.budget}" if d.budget is not None else ""
        lines.append(f"  {d.resource}: {d.used}{limit} devices")
    return "\n".join(lines)


def _scenario_row(
    service: api.PDService, name: str, snapshot: Snapshot, now: float
) -> tuple[str, ...]:
    spec = next(s for s in service.spec.scenarios if s.name == name)
    status = next((s for s in service.status.scenarios if s.name == name), None)
    group = next((g for g in snapshot.groups if g.spec.scenario == name), None)
    attained = status.attainment_percent if status else None
    ready = group.status.ready_replicas if group else 0
    wanted = group.spec.replicas if group and group.spec.replicas is not None else "?"
    return (
        name,
        spec.ratio.mode,
        f"{ready}/{wanted}",
        f"{status.prefill.ready}/{status.prefill.desired}" if status else "-",
        f"{status.decode.ready}/{status.decode.desired}" if status else "-",
        f"{'-' if attained is None else f'{attained}%'} of {spec.slo.attainment_percent:g}%",
        decision_line(group.status.decisions[-1], now) if group and group.status.decisions else "-",
    )


def decision_line(d: api.DecisionRecord, now: float) -> str:
    """One decision in one line: age, outcome, reason, and the counts where they change.

    `now`: seconds since the epoch.
    """
    ago = age(now - epoch_of(d.time))
    change = "" if d.from_ == d.to else f": {counts_text(d.from_)} -> {counts_text(d.to)}"
    return f"{ago} ago {d.outcome} {d.reason}{change}"


def counts_text(c: api.DecisionCounts) -> str:
    """`1 x 2P4D`: groups times instances per group."""
    return f"{c.groups} x {c.prefill}P{c.decode}D"


def _group_rows(group: api.ScenarioGroup) -> list[tuple[str, ...]]:
    return [
        (
            f"{group.spec.scenario}/{g.index}",
            g.revision or "-",
            f"{g.prefill.ready}/{g.prefill.desired}",
            f"{g.decode.ready}/{g.decode.desired}"
            + (f" +{g.spares.ready}/{g.spares.desired} spare" if g.spares.desired else ""),
            f"v{g.table_version}",
            f"{g.cross_leaf_percent}%",
            ", ".join(g.cells) or "-",
        )
        for g in group.status.groups
    ]


def _instance_row(i: InstanceObs, now: float) -> tuple[str, ...]:
    nodes = ", ".join(filter(None, i.nodes)) or "-"
    role = i.role if i.size == 1 else f"{i.role}, {len(i.members)} of {i.size} pods"
    return (i.name, role, nodes, state_of(i), str(i.restarts), age(now - i.created))
