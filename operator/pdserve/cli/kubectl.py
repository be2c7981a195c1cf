"""`kubectl pdserve`: look at PDServices through the operator's own eyes, and ask them.

kubectl finds this command on PATH by its name (`kubectl-pdserve`).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from typing import Final

from pdserve import api
from pdserve.api import InvalidObjectError
from pdserve.cli import (
    approval,
    ask,
    ask_stream,
    request_log,
    rollout,
    snapshot,
    spec_patch,
    view_counts,
    view_decisions,
    view_explain,
    view_local,
    view_status,
)
from pdserve.cli.ask_target import AskError
from pdserve.cli.revision_history import UnknownRevisionError
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import ConnectError, connect, default_namespace
from pdserve.kube.errors import KubeError
from pdserve.terms.json import JsonObject

_EXAMPLES = """examples:
  kubectl pdserve status                      every PDService of the context's namespace
  kubectl pdserve status shop -n prod         one of them
  kubectl pdserve status -A -o json           all, for scripts
  kubectl pdserve explain shop                why it is placed and sized as it is
  kubectl pdserve explain shop chat           only scenario chat
  kubectl pdserve decisions shop --scenario chat  what the ratio loop decided, and when
  kubectl pdserve approve shop chat           make the change that waits (ratio mode Approve)
  kubectl pdserve undo shop chat              counts before the last change, held for an hour
  kubectl pdserve explain --request ID        what became of one request, and why
  kubectl pdserve rollout undo shop           back to the revision before
  kubectl pdserve ask shop "Hello there"      an answer as it streams, with TTFT and TPOT
"""


_TOLD: Final = (
    AskError, snapshot.NotFoundError, ConnectError, InvalidObjectError, spec_patch.RefusedError,
    UnknownRevisionError,
)  # fmt: skip
"""Errors whose text says all."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; exit status 1: not found or refused, 2: wrong command line."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command == "explain" and arguments.name is None and arguments.request is None:
        parser.error("explain: name a PDService, or a request with --request ID")
    try:
        if arguments.namespace is None:
            arguments.namespace = default_namespace(arguments.kubeconfig, context=arguments.context)
        if arguments.command == "ask":
            return asyncio.run(ask.run(arguments))
        if arguments.command == "rollout" or arguments.command in approval.COMMANDS:
            return asyncio.run(_changed(arguments))
        print(asyncio.run(_run(arguments)))
    except _TOLD as error:
        return _fail(str(error))
    except KubeError as error:
        if error.is_not_found:
            return _fail("the API server does not know PDServices: install the chart first")
        if error.is_unreachable:
            return _fail(f"the API server does not answer: {error}; check --kubeconfig/--context")
        return _fail(str(error))
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has enough. Python would complain at exit when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13
    return 0


def _fail(message: str) -> int:
    print(f"kubectl pdserve: {message}", file=sys.stderr)
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kubectl pdserve",
        description="What a PDService does, and why; and what it answers.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    connection = argparse.ArgumentParser(add_help=False)
    connection.add_argument("--kubeconfig", metavar="FILE")
    connection.add_argument("--context", metavar="NAME")
    connection.add_argument("-o", "--output", choices=("text", "json"), default="text")
    common = argparse.ArgumentParser(add_help=False, parents=[connection])
    where = common.add_mutually_exclusive_group()
    where.add_argument("-n", "--namespace", help="default: the context's")
    where.add_argument("-A", "--all-namespaces", action="store_true")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    status = commands.add_parser("status", parents=[common], help="one screen")
    status.add_argument("name", nargs="?", help="PDService; default: all")
    explain = commands.add_parser("explain", parents=[common], help="why placed, sized or waiting")
    explain.add_argument("name", nargs="?", help="PDService")
    explain.add_argument("scenario", nargs="?", help="default: all")
    explain.add_argument(
        "--request", metavar="ID", help="what became of one request (x-request-id), and why"
    )
    rollout.add_parser(commands, connection)
    decided = commands.add_parser(
        "decisions", parents=[common], help="what the ratio loop decided, newest first",
        description="The last ten decisions that status holds. A whole record is what the "
        "operator's --decisions-log writes; `pdserve replay` decides it again.",
    )  # fmt: skip
    decided.add_argument("name", nargs="?", help="PDService; default: all")
    decided.add_argument("--scenario", help="default: all")
    approval.add_parsers(commands, connection)
    ask.add_parser(commands, connection)
    return parser


async def _changed(arguments: argparse.Namespace) -> int:
    """Commands that may change a PDService."""
    client = await connect(arguments.kubeconfig, context=arguments.context)
    run = rollout.run if arguments.command == "rollout" else approval.run
    try:
        return await run(client, arguments)
    finally:
        await client.close()


async def _run(arguments: argparse.Namespace) -> str:
    client = await connect(arguments.kubeconfig, context=arguments.context)
    try:
        if arguments.command == "explain" and arguments.request is not None:
            return await _explain_request(client, arguments)
        namespace = None if arguments.all_namespaces else arguments.namespace
        found = await snapshot.read_services(client, namespace, arguments.name)
        if arguments.command == "decisions":
            return _decisions(found, arguments)
        if arguments.output == "json":
            return json.dumps([_as_json(s) for s in found], indent=2)
        if not found:
            return f"no PDService in {namespace or 'any namespace'}"
        if arguments.command == "status":
            return "\n\n".join(view_status.render(s, time.time()) for s in found)
        return "\n\n".join([await _explain(client, s, arguments) for s in found])
    finally:
        await client.close()


async def _counts(client: KubeClient, found: snapshot.Snapshot, group: api.ScenarioGroup) -> str:
    """What other counts of one scenario would attain, with what stands above it apart."""
    mine = [s for s in found.service.spec.scenarios if s.name == group.spec.scenario]
    if not mine:
        return ""
    profile = await snapshot.read_profile(client, group)
    if isinstance(profile, snapshot.NoRight):
        return (
            "\n\nWhat other counts would attain: not shown, for it needs the right to get "
            f"ConfigMaps ({profile.message})"
        )
    text = view_counts.render_counts(group, mine[0].slo.value, profile)
    return f"\n\n{group.spec.scenario}: {text}" if text else ""


def _decisions(found: Sequence[snapshot.Snapshot], arguments: argparse.Namespace) -> str:
    if arguments.output == "json":
        return json.dumps(view_decisions.decisions_json(found, arguments.scenario), indent=2)
    return view_decisions.render_decisions(found, arguments.scenario)


async def _explain_request(client: KubeClient, arguments: argparse.Namespace) -> str:
    found = await request_log.find(
        client, arguments.request, arguments.namespace, arguments.name,
        kubeconfig=arguments.kubeconfig, context=arguments.context,
    )  # fmt: skip
    if arguments.output == "json":
        return json.dumps({"gateway": found.pod, **found.line}, indent=2)
    return request_log.render(found)


async def _explain(
    client: KubeClient, found: snapshot.Snapshot, arguments: argparse.Namespace
) -> str:
    scenario: str | None = arguments.scenario
    state = await snapshot.read_fabric(client, found.service.spec.fabric.domain_ref.name)
    text = view_explain.render(found, scenario, state, time.time())
    for group in found.groups:
        if scenario in (None, group.spec.scenario):
            text += await _counts(client, found, group)
    if not view_local.wanted(found.service, scenario):
        return text
    async with ask_stream.pod_proxy(arguments.kubeconfig, arguments.context) as proxy:
        scrapes = await snapshot.read_gateways(client, found.service, proxy)
    return f"{text}\n\n{view_local.render(found.service, scenario, scrapes)}"


def _as_json(found: snapshot.Snapshot) -> JsonObject:
    return {
        "service": found.service.to_dict(),
        "scenarioGroups": [g.to_dict() for g in found.groups],
        "instances": [
            {
                "name": i.name,
                "role": i.role,
                "groupIndex": i.group_index,
                "node": i.node,
                "state": view_status.state_of(i),
                "restarts": i.restarts,
            }
            for i in view_status.instances(found, time.time())
        ],
    }
