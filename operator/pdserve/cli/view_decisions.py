"""`kubectl pdserve decisions`: what the ratio loop decided, from ScenarioGroup status."""

from __future__ import annotations

from collections.abc import Sequence

from pdserve import api
from pdserve.cli.columns import table
from pdserve.cli.snapshot import Snapshot
from pdserve.cli.view_status import counts_text
from pdserve.terms.json import JsonObject

_HEAD = ("TIME", "SCENARIO", "FROM", "TO", "OUTCOME", "REASON", "MESSAGE")


def render_decisions(snapshots: Sequence[Snapshot], scenario: str | None) -> str:
    """A line for each decision, newest first within a scenario; `scenario`: only this one."""
    rows = [_row(group, d) for group, d in _decisions(snapshots, scenario)]
    if rows:
        return table(_HEAD, rows)
    known = sorted({g.spec.scenario for s in snapshots for g in s.groups})
    if scenario is not None and scenario not in known:
        return f"no scenario {scenario!r}; scenarios: {', '.join(known) or 'none'}"
    return "no decision yet"


def decisions_json(snapshots: Sequence[Snapshot], scenario: str | None) -> list[JsonObject]:
    """The same for scripts, as status has them."""
    return [
        {
            "namespace": group.metadata.namespace,
            "service": group.spec.service,
            "scenario": group.spec.scenario,
            **decision.to_dict(),
        }
        for group, decision in _decisions(snapshots, scenario)
    ]


def _decisions(
    snapshots: Sequence[Snapshot], scenario: str | None
) -> list[tuple[api.ScenarioGroup, api.DecisionRecord]]:
    return [
        (group, decision)
        for snapshot in snapshots
        for group in snapshot.groups
        if scenario in (None, group.spec.scenario)
        for decision in reversed(group.status.decisions)
    ]


def _row(group: api.ScenarioGroup, d: api.DecisionRecord) -> tuple[str, ...]:
    return (
        d.time, f"{group.spec.service}/{group.spec.scenario}", counts_text(d.from_),
        counts_text(d.to), d.outcome, d.reason, d.message,
    )  # fmt: skip
