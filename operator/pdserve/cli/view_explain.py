"""Why things are as they are: placement, waiting, and the ratio's decisions. Wording only.

The placement part runs the operator's own planner on what the cluster shows now, so what it says
is what the operator would do.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace

from pdserve import api
from pdserve.cli.approval import render_proposals
from pdserve.cli.snapshot import FabricState, NoRight, Snapshot
from pdserve.cli.view_schedule import render_schedules
from pdserve.cli.view_status import counts_text, decision_line
from pdserve.desired.group_wanted import wanted_of
from pdserve.placement import NoFit, PlacedInstance, Site, place, site_of
from pdserve.ratio.types import Counts
from pdserve.terms import ROLES, Role
from pdserve.terms.json import JsonObject
from pdserve.topology import (
    Fabric,
    PodView,
    build_fabric,
    node_view,
    pod_view,
    reservation_of,
)
from pdserve.wire import names


def render(
    snapshot: Snapshot, scenario: str | None, fabric: FabricState | NoRight | None, now: float
) -> str:
    """The explanation of one scenario by name, or of all where it is None.

    `now`: seconds since the epoch.
    """
    parts = []
    for group in snapshot.groups:
        if scenario in (None, group.spec.scenario):
            parts += [_conditions(group), _places(group), _decisions(group, now)]
            parts.append(_next_group(group, fabric))
    if not parts:
        known = ", ".join(s.name for s in snapshot.service.spec.scenarios)
        return f"no ScenarioGroup for scenario {scenario!r} yet; scenarios: {known}"
    parts.append(render_proposals(snapshot, now))
    parts.append(render_schedules(snapshot.service, scenario, now))
    return "\n\n".join(part for part in parts if part)


def _conditions(group: api.ScenarioGroup) -> str:
    lines = [f"ScenarioGroup {group.metadata.namespace}/{group.metadata.name}"]
    lines += [
        f"  {c.type}={c.status}  {c.reason}: {c.message}".rstrip(": ")
        for c in group.status.conditions
    ]
    lines += [
        f"  slot {r.slot}: {r.failures} faults, last {r.last_failure_time}"
        + _avoiding(r)
        + _seen(r)
        for r in group.status.repairs
    ]
    return "\n".join(lines)


def _avoiding(repair: api.RepairStatus) -> str:
    nodes = [s.node for s in repair.suspects] or [n for n in (repair.suspect_node,) if n]
    return f", avoiding {'nodes' if len(nodes) > 1 else 'node'} {', '.join(nodes)}" if nodes else ""


def _seen(repair: api.RepairStatus) -> str:
    return f": {repair.fault}: {repair.message}" if repair.message else ""


def _places(group: api.ScenarioGroup) -> str:
    lines = ["Where it is"]
    for g in group.status.groups:
        balance = (
            "no KV crosses a leaf"
            if g.cross_leaf_percent == 0
            else f"{g.cross_leaf_percent}% of KV traffic crosses leaves"
        )
        lines.append(f"  P/D group {g.index}: {', '.join(g.cells) or 'no pods'} ({balance})")
    roles = (("prefill", group.spec.prefill), ("decode", group.spec.decode))
    lines += [
        f"  each {name} is {role.instance.nodes} pods in one leaf, ready when all are"
        for name, role in roles
        if role.instance.nodes > 1
    ]
    return "\n".join(lines) if len(lines) > 1 else ""


def _decisions(group: api.ScenarioGroup, now: float) -> str:
    if not group.status.decisions:
        return "Ratio: no decision yet"
    lines = ["Ratio, newest first"]
    for d in reversed(group.status.decisions):
        lines.append(f"  {decision_line(d, now)}")
        lines.append(f"      {d.message}")
        if d.inputs:
            lines.append("      " + "  ".join(f"{k}={v}" for k, v in sorted(d.inputs.items())))
    return "\n".join(lines)


def _next_group(group: api.ScenarioGroup, state: FabricState | NoRight | None) -> str:
    if isinstance(state, NoRight):
        return (
            "Where one more P/D group would go: not shown, for it needs the right to list nodes "
            f"and all pods and to get RoCEDomains ({state.message})"
        )
    if state is None:
        name = group.spec.fabric.domain_ref.name
        return f"RoCEDomain {name!r} does not exist: nothing can be placed"
    spec = group.spec
    prefill, decode = spec.prefill, spec.decode
    if not prefill.replicas or not decode.replicas:
        return ""
    counts = Counts(1, prefill.replicas, decode.replicas)
    # Where volumes are is not asked: that takes rights to read claims.
    wanted = wanted_of(group, counts, lambda _namespace, _role, _model: None)
    request = replace(wanted.group_request(), beside=_sites(group, state.pods))
    answer = place(fabric_of(state), request)
    asked = counts_text(
        api.DecisionCounts(groups=1, prefill=prefill.replicas, decode=decode.replicas)
    )
    head = f"If one more P/D group were placed now ({asked})"
    if isinstance(answer, NoFit):
        return f"{head}\n  {answer.message}"
    return "\n".join([head, *(f"  {line}" for line in answer.explanation)])


def _sites(group: api.ScenarioGroup, pods: Iterable[JsonObject]) -> tuple[Site, ...]:
    """Where the scenario's P/D groups are now."""
    ours = {
        names.LABEL_SERVICE: group.spec.service,
        names.LABEL_SCENARIO: group.spec.scenario,
    }
    nodes: dict[tuple[str, Role, str], list[str]] = defaultdict(list)
    for pod in pods:
        meta, node = pod["metadata"], pod["spec"].get("nodeName", "")
        labels = meta.get("labels") or {}
        role = labels.get(names.LABEL_ROLE)
        mine = meta.get("namespace") == group.metadata.namespace and ours.items() <= labels.items()
        if mine and node and role in ROLES and "deletionTimestamp" not in meta:
            index = labels.get(names.LABEL_GROUP_INDEX, "")
            nodes[index, role, names.instance_name(meta["name"])].append(node)
    found: dict[str, list[PlacedInstance]] = defaultdict(list)
    for (index, role, name), its in nodes.items():
        found[index].append(PlacedInstance(name, role, tuple(its)))
    return tuple(site_of(found[index]) for index in sorted(found))


def fabric_of(state: FabricState) -> Fabric:
    """The fabric tree with what is free now."""
    pods = [pod_view(pod) for pod in state.pods]
    by_node = _by_node(pods)
    views = [node_view(n, by_node.get(n["metadata"]["name"], ())) for n in state.nodes]
    return build_fabric(state.domain, views, (r for p in pods for r in reservation_of(p)))


def _by_node(pods: Iterable[PodView]) -> dict[str, list[PodView]]:
    found: dict[str, list[PodView]] = defaultdict(list)
    for pod in pods:
        found[pod.node].append(pod)
    return found
