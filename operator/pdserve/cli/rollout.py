"""`kubectl pdserve rollout`: follow, pause, resume and undo the rollout of a PDService.

It needs what kubectl would need for the same: `list` on PDServices, ScenarioGroups, pods and
ControllerRevisions, and to change something `patch` on the PDService. It writes the PDService's
spec alone; the operator does the rest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Final

from pdserve.cli import snapshot, view_rollout
from pdserve.cli.revision_history import (
    FieldChange,
    StoredRevision,
    changes,
    choose,
    history_of,
    present_of,
    spec_after,
)
from pdserve.cli.spec_patch import RefusedError, patch_spec
from pdserve.kube.client import KubeClient
from pdserve.kube.resource import CONTROLLER_REVISIONS, Object
from pdserve.terms.json import JsonObject

LOOK_SECONDS: Final = 1.0
_EXAMPLES = """examples:
  kubectl pdserve rollout status shop             how far it is, and what it waits for
  kubectl pdserve rollout status shop --watch     until it is complete (exit 0) or stopped (exit 1)
  kubectl pdserve rollout pause shop              replace no further P/D group
  kubectl pdserve rollout resume shop             go on; past the canary, if it waits there
  kubectl pdserve rollout history shop            revisions, and what each changed
  kubectl pdserve rollout undo shop --dry-run     what going back would change
  kubectl pdserve rollout undo shop               back to the revision before
  kubectl pdserve rollout undo shop --to-revision 3f09ab12
"""


def add_parser(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    connection: argparse.ArgumentParser,
) -> None:
    """Add `rollout` and its verbs."""
    rollout = commands.add_parser(
        "rollout", help="follow, pause, resume or undo a rollout", epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    verbs = rollout.add_subparsers(dest="verb", required=True, metavar="VERB")
    made = {}
    for verb, text in (
        ("status", "how far it is, and what it waits for"),
        ("pause", "replace no further P/D group"),
        ("resume", "go on; past the canary, if it waits there"),
        ("history", "revisions, and what each changed"),
        ("undo", "make an earlier template the spec again"),
    ):
        made[verb] = verbs.add_parser(
            verb, parents=[connection], help=text, epilog=_EXAMPLES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        made[verb].add_argument("name", help="PDService")
        made[verb].add_argument("-n", "--namespace", help="default: the context's")
    made["status"].add_argument("-w", "--watch", action="store_true", help="wait for its end")
    made["status"].add_argument(
        "--timeout", type=float, default=0.0, metavar="SECONDS", help="of --watch; 0: none"
    )
    made["undo"].add_argument("--to-revision", metavar="HASH", help="default: the one before")
    for verb in ("pause", "resume", "undo"):
        made[verb].add_argument(
            "--dry-run", action="store_true", help="the API server checks it and keeps nothing"
        )


async def run(client: KubeClient, arguments: argparse.Namespace) -> int:
    """Do one verb and print; the exit status.

    Raises:
        RefusedError: it makes no sense now.
        NotFoundError: there is no such PDService.
        UnknownRevisionError: there is no such revision.
        KubeError: the API server refused.
    """
    if arguments.verb == "status":
        return await _status(client, arguments)
    found = await _read(client, arguments)
    if arguments.verb == "history":
        history = await _history(client, found)
        if arguments.output == "json":
            print(json.dumps(view_rollout.history_json(history), indent=2))
        else:
            print(view_rollout.render_history(history, time.time()))
        return 0
    raw = await client.get(snapshot.SERVICES, arguments.name, arguments.namespace)
    if arguments.verb == "undo":
        operations, text = await _undo(client, found, raw, arguments.to_revision)
    else:
        operations, text = (_pause if arguments.verb == "pause" else _resume)(found, raw)
    await patch_spec(client, raw, operations, dry_run=arguments.dry_run)
    if arguments.output == "json":
        done = {"dryRun": arguments.dry_run, "patch": operations, "message": text}
        print(json.dumps(done, indent=2))
    else:
        print(f"(dry run) {text}" if arguments.dry_run else text)
    return 0


async def _read(client: KubeClient, arguments: argparse.Namespace) -> snapshot.Snapshot:
    (found,) = await snapshot.read_services(client, arguments.namespace, arguments.name)
    return found


async def _status(client: KubeClient, arguments: argparse.Namespace) -> int:
    end = time.monotonic() + arguments.timeout if arguments.timeout > 0 else None
    said = ""
    while True:
        found = await _read(client, arguments)
        rollouts = view_rollout.rollouts_of(found, present_of(found.service).revision)
        text = view_rollout.render_status(arguments.name, rollouts)
        if arguments.output == "json":
            text = json.dumps([r.as_json() for r in rollouts], indent=2)
        if text != said:
            print(text, flush=True)
            said = text
        if not arguments.watch or view_rollout.complete(rollouts):
            return 0
        if view_rollout.stopped(rollouts):
            return 1
        if end is not None and time.monotonic() >= end:
            raise RefusedError(f"not complete after {arguments.timeout:g} s")
        await asyncio.sleep(LOOK_SECONDS)


async def _history(client: KubeClient, found: snapshot.Snapshot) -> tuple[StoredRevision, ...]:
    stored = await client.list(CONTROLLER_REVISIONS, found.service.metadata.namespace)
    return history_of(found.service, found.groups, stored.items)


def _pause(found: snapshot.Snapshot, raw: Object) -> tuple[list[JsonObject], str]:
    if found.service.spec.rollout.paused:
        raise RefusedError("its rollout is paused already")
    name = found.service.metadata.name
    return [_set(raw, "paused", True)], f"{name}: no further P/D group is replaced"


def _resume(found: snapshot.Snapshot, raw: Object) -> tuple[list[JsonObject], str]:
    service = found.service
    rule, name = service.spec.rollout, service.metadata.name
    if rule.paused:
        text = f"{name}: its rollout goes on"
        if rule.canary_groups is not None:
            text += f"; it waits after {rule.canary_groups} P/D groups until it is resumed again"
        return [_set(raw, "paused", False)], text
    revision = present_of(service).revision
    rollouts = view_rollout.rollouts_of(found, revision)
    waits = rule.canary_groups is not None and rule.promoted_revision != revision
    if waits and not view_rollout.complete(rollouts):
        text = f"{name}: revision {revision} goes on past its canary"
        return [_set(raw, "promotedRevision", revision)], text
    if view_rollout.stopped(rollouts):
        raise RefusedError(
            "it stopped by itself because a new P/D group does not serve: correct the template, "
            f"raise rollout.progressDeadlineSeconds, or: kubectl pdserve rollout undo {name}"
        )
    raise RefusedError("nothing to resume: it is not paused and waits for no canary")


async def _undo(
    client: KubeClient, found: snapshot.Snapshot, raw: Object, asked: str | None
) -> tuple[list[JsonObject], str]:
    history = await _history(client, found)
    goal = choose(history, asked)
    name, present = found.service.metadata.name, history[0]
    found_changes = changes(present.template, goal.template)
    if not found_changes:
        raise RefusedError(f"revision {goal.revision} is what it asks for already")
    operations = _spec_operations(raw, found_changes)
    lines = [f"{name}: revision {present.revision} -> {goal.revision}"]
    lines += [f"    {change}" for change in found_changes]
    if found.service.spec.rollout.paused:
        operations.append(_set(raw, "paused", False))
        lines.append("    its rollout was paused and goes on")
    lines.append("Change your manifests too: applying them again would bring the other one back.")
    return operations, "\n".join(lines)


def _spec_operations(raw: Object, to: tuple[FieldChange, ...]) -> list[JsonObject]:
    parts = spec_after(raw["spec"], to)
    return [{"op": "add", "path": f"/spec/{part}", "value": parts[part]} for part in parts]


def _set(raw: Object, field: str, value: object) -> JsonObject:
    """Set one field of `spec.rollout`, which may not be there."""
    if raw["spec"].get("rollout") is None:
        return {"op": "add", "path": "/spec/rollout", "value": {field: value}}
    return {"op": "add", "path": f"/spec/rollout/{field}", "value": value}
