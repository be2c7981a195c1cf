"""`kubectl pdserve approve | reject | undo`: a person's word on what the ratio loop decides.

Like `rollout` they write the PDService's spec alone (`ratio.answer`, `ratio.hold`), with the right
to patch it; the operator does the rest within a round of its loop.
"""

from __future__ import annotations

import argparse
import json
import time
from typing import Final

from pdserve.api import Scenario, ScenarioGroup
from pdserve.cli import snapshot
from pdserve.cli.spec_patch import RefusedError, patch_spec
from pdserve.desired.decisions import counts_before, counts_of
from pdserve.desired.proposals import pending_of
from pdserve.kube.client import KubeClient
from pdserve.kube.resource import Object
from pdserve.ratio.types import PendingChange
from pdserve.terms.json import JsonObject
from pdserve.terms.times import rfc3339

COMMANDS: Final = ("approve", "reject", "undo")
MOST_MINUTES: Final = 7 * 24 * 60.0
_EXAMPLES = """examples:
  kubectl pdserve approve shop chat                the change that waits, as status shows it
  kubectl pdserve approve shop chat --proposal 3f09ab12    only if it is this one
  kubectl pdserve reject shop chat                 not again for ratio.approvalSeconds
  kubectl pdserve undo shop chat                   counts before the last change, for an hour
  kubectl pdserve undo shop chat --minutes 240     for four hours
  kubectl pdserve undo shop chat --end             the loop goes on now
"""


def add_parsers(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    connection: argparse.ArgumentParser,
) -> None:
    """Add the three commands."""
    common = argparse.ArgumentParser(add_help=False, parents=[connection])
    common.add_argument("name", help="PDService")
    common.add_argument("scenario")
    common.add_argument("-n", "--namespace", help="default: the context's")
    common.add_argument(
        "--dry-run", action="store_true", help="the API server checks it and keeps nothing"
    )
    shape = argparse.RawDescriptionHelpFormatter
    approve = commands.add_parser(
        "approve", parents=[common], epilog=_EXAMPLES, formatter_class=shape,
        help="make the change of counts that waits (ratio mode Approve)",
    )  # fmt: skip
    reject = commands.add_parser(
        "reject", parents=[common], epilog=_EXAMPLES, formatter_class=shape,
        help="do not make the change that waits",
    )  # fmt: skip
    undo = commands.add_parser(
        "undo", parents=[common], epilog=_EXAMPLES, formatter_class=shape,
        help="back to the counts before the last change, and hold them for a while",
    )  # fmt: skip
    for parser in (approve, reject):
        parser.add_argument("--proposal", metavar="ID", help="only if this one waits")
    undo.add_argument(
        "--minutes", type=float, default=60.0, help="how long they are held (%(default)g)"
    )
    undo.add_argument("--end", action="store_true", help="end a hold instead")


async def run(client: KubeClient, arguments: argparse.Namespace) -> int:
    """Do one command and print; the exit status.

    Raises:
        RefusedError: it makes no sense now.
        NotFoundError: there is no such PDService.
        KubeError: the API server refused.
    """
    (found,) = await snapshot.read_services(client, arguments.namespace, arguments.name)
    scenario, group = _scenario(found, arguments.scenario)
    raw = await client.get(snapshot.SERVICES, arguments.name, arguments.namespace)
    if raw["metadata"]["generation"] != found.service.metadata.generation:
        raise RefusedError("the PDService changed meanwhile: look and try again")
    if arguments.command == "undo":
        operation, text = _undo(raw, scenario, group, arguments)
    else:
        operation, text = _answer(raw, scenario, group, arguments)
    await patch_spec(client, raw, [operation], dry_run=arguments.dry_run)
    if arguments.output == "json":
        done = {"dryRun": arguments.dry_run, "patch": [operation], "message": text}
        print(json.dumps(done, indent=2))
    else:
        print(f"(dry run) {text}" if arguments.dry_run else text)
    return 0


def render_proposals(found: snapshot.Snapshot, now: float) -> str:
    """A line for each change that waits for a person; empty without any.

    `now`: seconds since the epoch.
    """
    lines = []
    modes = {s.name: s.ratio.mode for s in found.service.spec.scenarios}
    for group in found.groups:
        pending, name = pending_of(group), group.spec.scenario
        if pending is None or pending.rejected or now >= pending.expires:
            continue
        if modes.get(name) == "Approve":
            lines.append(f"  {name}: {_spelled(pending)}, until {rfc3339(pending.expires)}")
            lines.append(f"      {pending.message}")
            lines.append(f"      kubectl pdserve approve {found.service.metadata.name} {name}")
    return "\n".join(["Waiting for approval", *lines]) if lines else ""


def _scenario(found: snapshot.Snapshot, name: str) -> tuple[Scenario, ScenarioGroup]:
    listed = {s.name: s for s in found.service.spec.scenarios}
    groups = {g.spec.scenario: g for g in found.groups}
    if name not in listed:
        raise RefusedError(f"no scenario {name!r}; scenarios: {', '.join(listed)}")
    if name not in groups:
        raise RefusedError(f"scenario {name!r} has no ScenarioGroup yet")
    return listed[name], groups[name]


def _answer(
    raw: Object, scenario: Scenario, group: ScenarioGroup, arguments: argparse.Namespace
) -> tuple[JsonObject, str]:
    if scenario.ratio.mode != "Approve":
        raise RefusedError(f"ratio mode of {scenario.name} is {scenario.ratio.mode}, not Approve")
    pending = pending_of(group)
    if pending is None:
        raise RefusedError(f"nothing waits for approval in {scenario.name}")
    if arguments.proposal not in (None, pending.id):
        raise RefusedError(f"proposal {arguments.proposal} is over; now {_spelled(pending)} waits")
    if pending.rejected:
        raise RefusedError(f"proposal {pending.id} was rejected already")
    if time.time() >= pending.expires:
        raise RefusedError(f"proposal {pending.id} expired at {rfc3339(pending.expires)}")
    verdict = "Approve" if arguments.command == "approve" else "Reject"
    value = {"proposal": pending.id, "verdict": verdict}
    done = "approved" if verdict == "Approve" else "rejected"
    return _set(raw, scenario, "answer", value), f"{scenario.name}: {_spelled(pending)} is {done}"


def _undo(
    raw: Object, scenario: Scenario, group: ScenarioGroup, arguments: argparse.Namespace
) -> tuple[JsonObject, str]:
    name = scenario.name
    if arguments.end:
        if scenario.ratio.hold is None:
            raise RefusedError(f"the counts of {name} are not held")
        path = f"{_path(raw, scenario)}/hold"
        return {"op": "remove", "path": path}, f"{name}: the ratio loop goes on"
    if scenario.ratio.mode in ("Fixed", "External"):
        raise RefusedError(f"ratio mode of {name} is {scenario.ratio.mode}: set the counts there")
    if not 1.0 <= arguments.minutes <= MOST_MINUTES:
        raise RefusedError(f"--minutes {arguments.minutes:g}: want 1 to {MOST_MINUTES:.0f}")
    changes = (d for d in reversed(group.status.decisions) if d.outcome == "Applied")
    last = next((d for d in changes if counts_before(d) != counts_of(d)), None)
    if last is None:
        raise RefusedError(f"no change of the counts of {name} is known")
    to, until = counts_before(last), rfc3339(time.time() + 60.0 * arguments.minutes)
    counts = {"groups": to.groups, "prefill": to.prefill, "decode": to.decode}
    text = (
        f"{name}: {counts_of(last)} -> {to}, as before {last.reason} at {last.time}; the ratio "
        f"loop is held until {until}"
    )
    return _set(raw, scenario, "hold", {"until": until, "counts": counts}), text


def _spelled(pending: PendingChange) -> str:
    share = "" if pending.attainment is None else f", predicted {pending.attainment:.1%}"
    return f"{pending.id}: {pending.before} -> {pending.to} ({pending.reason}{share})"


def _set(raw: Object, scenario: Scenario, field: str, value: JsonObject) -> JsonObject:
    return {"op": "add", "path": f"{_path(raw, scenario)}/{field}", "value": value}


def _path(raw: Object, scenario: Scenario) -> str:
    listed = [s["name"] for s in raw["spec"]["scenarios"]]
    return f"/spec/scenarios/{listed.index(scenario.name)}/ratio"
