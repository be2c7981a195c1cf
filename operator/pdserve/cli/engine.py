"""`pdserve engine check`: does a running engine keep the contract of an instance?"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from pdserve.wire import calls, names

if TYPE_CHECKING:
    from pdserve.enginecheck.subject import CheckedInstance, CheckSubject
    from pdserve.enginecheck.suite import CheckResult

ENV_TOKEN: Final = "PDSERVE_TOKEN"  # noqa: S105 (a name)
_NAMED: Final = re.compile(r"(prefill|decode)/([A-Za-z0-9][A-Za-z0-9.-]{0,62})=(.+)")
_TRANSFER: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):[0-9]{1,5}")
_EXAMPLES: Final = """\
Give the URLs of a prefill and a decode of one engine type, or one of them, that serve no users:
the check gives them a peer table, fills their slots, and at the end drains them (start them anew
after it, or give --no-drain). The control and request credential is taken from PDSERVE_TOKEN.

Each line says pass, fail or skip, and what to do. Exit status 1: a rule is not kept.
What the rules are: docs/engines/own.md

examples:
  # a pair of the reference engine, on two addresses of this machine
  PDSERVE_TOKEN=secret PDSERVE_INSTANCE=p0 pdserve-engine --role prefill --bind 127.0.0.2 &
  PDSERVE_TOKEN=secret PDSERVE_INSTANCE=d0 pdserve-engine --role decode --bind 127.0.0.3 &
  PDSERVE_TOKEN=secret pdserve engine check http://127.0.0.2:8000 http://127.0.0.3:8000

  # an engine of your own whose adapter is installed, without /pdserve/v1/info
  pdserve engine check --type MyEngine prefill/p0=http://10.0.0.1:8000 decode/d0=http://10.0.0.2:8000

  # for a script: one JSON object on standard output, progress on standard error
  pdserve engine check -o json http://127.0.0.2:8000 | jq '.results[] | select(.outcome == "fail")'
"""


class CheckCommandError(Exception):
    """The command line does not fit the engines; the message says what to do."""


def add_parser(commands: Any) -> None:
    """The command and its options."""
    parser = commands.add_parser("engine", help="check an engine against pdserve's contract")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    check = actions.add_parser(
        "check",
        help="run the contract's checks against a running engine",
        description="Check a running engine, one instance or a pair, against pdserve's contract.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = check.add_argument
    add("urls", nargs="+", metavar="URL", help="http://HOST:PORT, or ROLE/NAME=http://HOST:PORT "
        "where GET /pdserve/v1/info does not say role and name")  # fmt: skip
    add("--type", dest="type_name", metavar="TYPE",
        help="engine type; default: the one with pdserve's own paths")  # fmt: skip
    add("--transfer", action="append", default=[], metavar="HOST:PORT",
        help=f"KV address of each URL, in their order; default: its host, port "
        f"{names.PORT_TRANSFER}")  # fmt: skip
    add("--model", default="", metavar="NAME", help="default: the first of /v1/models")
    add("--body", default="{}", metavar="JSON", help="fields that every request gets beside ours")
    add("--tokens", type=_count, default=512, metavar="N",
        help="of replies that last while slots are filled; default: %(default)s")  # fmt: skip
    add("--seconds", type=_seconds, default=10.0, metavar="S",
        help="bound of each reply; default: %(default)g")  # fmt: skip
    add("--drain", action=argparse.BooleanOptionalAction, default=True,
        help="drain the instances at the end")  # fmt: skip
    add("--take-over", action="store_true", help="instances that have another group's peer table "
        "get one of ours")  # fmt: skip
    add("-o", "--output", choices=("text", "json"), default="text")
    check.set_defaults(run=_check)


def _check(arguments: argparse.Namespace) -> int:
    try:
        return asyncio.run(_run(arguments))
    except CheckCommandError as error:
        print(f"pdserve engine check: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        print(f"error: {error}: install it with pip install 'pdserve[operator]'", file=sys.stderr)
        return 1


async def _run(arguments: argparse.Namespace) -> int:
    from pdserve.enginecheck import suite

    subject = await _subject(arguments)
    results = []
    out = sys.stderr if arguments.output == "json" else sys.stdout
    async for result in suite.run(subject, drain=arguments.drain):
        results.append(result)
        print(_line(result), file=out, flush=True)
    failed = sum(r.outcome == "fail" for r in results)
    skipped = sum(r.outcome == "skip" for r in results)
    passed = len(results) - failed - skipped
    print(f"{passed} passed, {failed} failed, {skipped} skipped", file=out)
    if arguments.output == "json":
        print(json.dumps(_report(subject, results)))
    return 1 if failed else 0


def _line(result: CheckResult) -> str:
    word = {"pass": "ok  ", "fail": "FAIL", "skip": "skip"}[result.outcome]
    printable = "".join(c if c.isprintable() else "?" for c in result.says)
    return f"{word}  {result.where:10} {result.name:16} {printable}"


def _report(subject: CheckSubject, results: list[CheckResult]) -> dict[str, object]:
    return {
        "type": subject.type_name,
        "model": subject.model,
        "instances": [
            {"name": t.name, "role": t.role, "url": t.probe.url} for t in subject.targets
        ],
        "kept": not any(r.outcome == "fail" for r in results),
        "results": [dataclasses.asdict(r) for r in results],
    }


async def _subject(arguments: argparse.Namespace) -> CheckSubject:
    """What to check; raises CheckCommandError."""
    from pdserve.enginecheck.subject import CheckSubject
    from pdserve.engines import registry

    type_name = arguments.type_name or _plain_type()
    if type_name not in registry.known():
        known = ", ".join(registry.known())
        raise CheckCommandError(f"--type {type_name!r}: not known here (known: {known}); "
                           "docs/engines.md says how a type is installed")  # fmt: skip
    try:
        extra = json.loads(arguments.body)
    except ValueError as error:
        raise CheckCommandError(f"--body: {error}") from error
    if not isinstance(extra, dict):
        raise CheckCommandError("--body: must be a JSON object")
    if len(arguments.urls) > 2:
        raise CheckCommandError("give one URL, or those of a prefill and a decode")
    transfers = [*arguments.transfer, *[""] * len(arguments.urls)]
    targets = [
        await _target(u, t, arguments) for u, t in zip(arguments.urls, transfers, strict=False)
    ]
    if len({t.role for t in targets}) < len(targets):
        raise CheckCommandError(
            f"both are of the role {targets[0].role}: give a prefill and a decode"
        )
    if len({t.name for t in targets}) < len(targets):
        raise CheckCommandError(f"both are called {targets[0].name!r}: PDSERVE_INSTANCE names them")
    return CheckSubject(
        type_name, tuple(targets), arguments.model, extra, arguments.tokens, arguments.take_over
    )


def _plain_type() -> str:
    """The type that has pdserve's own paths and needs no proxy."""
    from pdserve.engines import registry
    from pdserve.engines.pod_parts import InstanceFacts, PodParts

    facts = InstanceFacts("prefill", 1, 1, "m", "")
    plain = PodParts()
    for name in registry.known():
        try:
            parts = registry.pod(name).parts(facts)
        except Exception:  # noqa: S112 (code of others; `--type` tells what is wrong with it)
            continue
        if not parts.proxy and parts.ready_path == plain.ready_path:
            return name
    raise CheckCommandError("give --type")


async def _target(given: str, transfer: str, arguments: argparse.Namespace) -> CheckedInstance:
    """An instance by its URL; raises CheckCommandError."""
    from pdserve.enginecheck.probe import Probe, ProbeError
    from pdserve.enginecheck.subject import CheckedInstance

    named = _NAMED.fullmatch(given)
    url = (named[3] if named else given).rstrip("/")
    host = _host(url)
    probe = Probe(url, os.environ.get(ENV_TOKEN, ""), arguments.seconds)
    if transfer and not _TRANSFER.fullmatch(transfer):
        raise CheckCommandError(f"--transfer {transfer!r}: must be HOST:PORT")
    transfer = transfer or f"{host}:{names.PORT_TRANSFER}"
    if named:
        return CheckedInstance(
            named[2], "prefill" if named[1] == "prefill" else "decode", transfer, probe
        )
    try:
        answer = await probe.call("GET", calls.PATH_INFO)
        said = answer.json() if answer.status == 200 else {}
    except ProbeError as error:
        raise CheckCommandError(f"{url}: {error}") from error
    name, role = said.get("instance"), said.get("role")
    if not isinstance(name, str) or role not in ("prefill", "decode"):
        raise CheckCommandError(
            f"GET {url}{calls.PATH_INFO} gets {answer.status} and says no role and name: "
            f"give prefill/NAME={url} or decode/NAME={url}, NAME being its PDSERVE_INSTANCE"
        )
    return CheckedInstance(name, role, transfer, probe)


def _host(url: str) -> str:
    try:
        parts = urlsplit(url)
        if parts.scheme == "http" and parts.hostname and parts.path == "" and parts.port != 0:
            return f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    except ValueError:
        pass
    raise CheckCommandError(f"{url!r}: must be http://HOST:PORT")


def _count(text: str) -> int:
    number = int(text)
    if not 8 <= number <= 100_000:
        raise argparse.ArgumentTypeError("must be from 8 to 100000")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.1 <= number <= 600:
        raise argparse.ArgumentTypeError("must be from 0.1 to 600")
    return number
