"""Command line and environment of the engine proxy -> one frozen `ProxyConfig`."""

from __future__ import annotations

import argparse
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

from pdserve import __version__
from pdserve.engines import credentials
from pdserve.engines.credentials import Credential
from pdserve.terms import ROLES, Role
from pdserve.wire import names

MAX_BODY_BYTES = (4 << 20) + (64 << 10)
"""A gateway takes bodies of 4 MiB from clients, and its legs add their parameters to them."""
_SERIES = re.compile(r"([a-zA-Z_:][a-zA-Z0-9_:]{0,127})=([a-zA-Z_:][a-zA-Z0-9_:]{0,127})")
_LOOPBACK = re.compile(r"tcp://(?:127\.0\.0\.1|\[::1\]):([1-9][0-9]{0,4})")
EXAMPLES = """\
examples:
  # the prefill of a pair on one machine; its engine listens on port 8001
  PDSERVE_TOKEN=secret pdserve-engine-proxy --role prefill --instance p0 --slots 4 \\
      --engine http://127.0.0.1:8001 --port 8000

  # a decode that takes two requests more than it runs, on all addresses
  PDSERVE_TOKEN=secret pdserve-engine-proxy --role decode --instance d0 --slots 16 --prefetch 2 \\
      --engine http://127.0.0.1:8001 --bind ::

  # what it says of itself
  curl http://127.0.0.1:8000/pdserve/v1/info
"""


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """Everything that does not change during the life of a proxy process; times in seconds."""

    role: Role
    engine: str
    bind: str = "127.0.0.1"
    port: int = names.PORT_HTTP
    instance: str = "engine"
    slots: int = 4
    prefetch: int = 0
    """Requests that a decode takes in while all slots run."""
    lease_seconds: float = 30.0
    pull_seconds: float = 2.0
    """After which the KV of a reply that comes whole counts as pulled."""
    reply_seconds: float = 600.0
    """Without a byte of the engine's reply, after which it counts as lost."""
    drain_seconds: float = 25.0
    max_body_bytes: int = MAX_BODY_BYTES
    health_path: str = "/health"
    engine_metrics_path: str = "/metrics"
    series: Mapping[str, str] = field(default_factory=dict)
    """Names under which counters of the engine are exposed -> the engine's names."""
    release_by_refusal: bool = False
    """The engine frees a prefill's KV when a decode refuses its leg: releases are done so."""
    rooms: bool = False
    """Both legs meet in a room of the prefill's bootstrap server, which pushes the KV."""
    kv_events: str = ""
    """ZeroMQ address to which a prefill's vLLM publishes its KV events; empty: none are read."""
    kv_events_arguments: str = ""
    """Field of a body with the engine's own arguments, which asks for the events; empty: none."""
    kv_events_replay: str = ""
    """ZeroMQ address of that vLLM's replay; empty: it has none."""
    state_file: Path | None = None
    token: str = ""
    control: Credential = field(default_factory=Credential)
    request: Credential = field(default_factory=Credential)
    kv_key: str = ""

    @property
    def places(self) -> int:
        """Requests that are taken at once."""
        return self.slots + self.prefetch


def parser() -> argparse.ArgumentParser:
    """The command line; `pdserve-engine-proxy --help` is its documentation."""
    p = argparse.ArgumentParser(
        prog="pdserve-engine-proxy",
        description="Gives an engine with OpenAI's API and P/D parameters the contract of a "
        "pdserve instance: refusals before queueing, slots, links, drains.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = p.add_argument
    add("--version", action="version", version=__version__)
    add("--role", choices=ROLES, help="PDSERVE_ROLE")
    add("--engine", required=True, metavar="URL", help="the engine, e.g. http://127.0.0.1:8001")
    add("--bind", metavar="HOST", help="address to listen on; PDSERVE_BIND; 127.0.0.1")
    add("--port", type=int, default=names.PORT_HTTP, help="0 picks one")
    add("--instance", help="peer id; PDSERVE_INSTANCE; the host name")
    add("--slots", type=int, default=4, help="requests at once: b_p or b_d")
    add("--prefetch", type=int, default=0, help="decode: extra requests taken in early")
    add("--lease-seconds", type=float, default=30.0, help="how long the engine keeps KV unpulled")
    add(
        "--pull-seconds", type=float, default=2.0,
        help="decode: KV counts as pulled so long after a leg whose reply comes whole was sent",
    )  # fmt: skip
    add("--reply-seconds", type=float, default=600.0, help="an engine silent for longer is lost")
    add("--drain-seconds", type=float, help="after SIGTERM; PDSERVE_DRAIN_SECONDS; 25")
    add("--max-body-bytes", type=int, default=MAX_BODY_BYTES, help="larger bodies get 413")
    add("--health-path", default="/health", help="of the engine: 200 while it is up")
    add("--engine-metrics-path", default="/metrics", help="of the engine")
    add(
        "--series", action="append", default=[], metavar="NAME=SERIES",
        help="expose the sum of the engine's counter SERIES as NAME; may be repeated",
    )  # fmt: skip
    add(
        "--release-by-refusal", action="store_true",
        help="the engine frees a prefill's KV when a decode refuses the leg",
    )  # fmt: skip
    add(
        "--rooms", action="store_true",
        help="legs meet by bootstrap_host, _port and _room, instead of kv_transfer_params",
    )  # fmt: skip
    add(
        "--kv-events", default="", metavar="ADDRESS",
        help="prefill: the engine publishes its KV events to this ZeroMQ address, "
        "tcp://127.0.0.1:PORT",
    )  # fmt: skip
    add("--kv-events-replay", default="", metavar="ADDRESS", help="where it replays them")
    add(
        "--kv-events-arguments", default="", metavar="FIELD",
        help="field of a request body with the engine's own arguments",
    )  # fmt: skip
    add("--state-file", type=Path, help="keeps the peer table over a restart of this process")
    return p


def parse(argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> ProxyConfig:
    """Options, then environment, then defaults; exits with a message on a contradiction."""
    env = os.environ if env is None else env
    command = parser()
    a = command.parse_args(argv)
    role = a.role or env.get("PDSERVE_ROLE")
    if role not in ROLES:
        command.error(f"--role or PDSERVE_ROLE: {role!r} is none of {', '.join(ROLES)}")
    if a.drain_seconds is None:
        try:
            a.drain_seconds = float(env.get("PDSERVE_DRAIN_SECONDS") or 25.0)
        except ValueError:
            value = env["PDSERVE_DRAIN_SECONDS"]
            command.error(f"PDSERVE_DRAIN_SECONDS: {value!r} is not a number of seconds")
    _check(command, a)
    control = Credential.of(env, credentials.CONTROL, shared=False)
    if not (env.get(credentials.SHARED) or control.configured):
        command.error(
            f"the operator's credential is needed in {credentials.CONTROL}_FILE or "
            f"{credentials.CONTROL}, or the service's secret in {credentials.SHARED}"
        )
    return ProxyConfig(
        role=cast(Role, role),
        engine=a.engine.rstrip("/"),
        bind=a.bind or env.get("PDSERVE_BIND") or "127.0.0.1",
        port=a.port,
        instance=a.instance or env.get("PDSERVE_INSTANCE") or socket.gethostname(),
        slots=a.slots,
        prefetch=a.prefetch if role == "decode" else 0,
        lease_seconds=a.lease_seconds,
        pull_seconds=a.pull_seconds,
        reply_seconds=a.reply_seconds,
        drain_seconds=a.drain_seconds,
        max_body_bytes=a.max_body_bytes,
        health_path=a.health_path,
        engine_metrics_path=a.engine_metrics_path,
        series=dict(entry.split("=") for entry in a.series),
        release_by_refusal=a.release_by_refusal,
        rooms=a.rooms,
        kv_events=a.kv_events if role == "prefill" else "",
        kv_events_replay=a.kv_events_replay,
        kv_events_arguments=a.kv_events_arguments,
        state_file=a.state_file,
        token=env.get(credentials.SHARED, ""),
        control=control,
        request=Credential.of(env, credentials.REQUEST, shared=False),
        kv_key=Credential.of(env, credentials.KV, shared=False).first,
    )


def _check(command: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    limits: tuple[tuple[str, float, float], ...] = (
        ("slots", 1, 4096),
        ("prefetch", 0, 4096),
        ("port", 0, 65535),
        ("lease_seconds", 0.1, 3600),
        ("pull_seconds", 0, 3600),
        ("reply_seconds", 0.1, 86400),
        ("drain_seconds", 0, 7200),
        ("max_body_bytes", 1024, 1 << 30),
    )
    for name, low, high in limits:
        value = getattr(a, name)
        if not low <= value <= high:
            command.error(f"--{name.replace('_', '-')} {value}: must be from {low:g} to {high:g}")
    try:
        url = urlsplit(a.engine)
        known = url.scheme == "http" and url.hostname and url.port and url.path in ("", "/")
    except ValueError:
        known = False
    if not known:
        command.error(f"--engine {a.engine!r}: must be http://HOST:PORT")
    for name in ("health_path", "engine_metrics_path"):
        if not re.fullmatch(r"/[!-~]*", getattr(a, name)):
            command.error(f"--{name.replace('_', '-')}: must be a path such as /health")
    for name in ("kv_events", "kv_events_replay"):
        value = getattr(a, name)
        found = _LOOPBACK.fullmatch(value)
        if value and (found is None or int(found[1]) > 65535):
            # Events have the prompts' tokens and are not encrypted.
            flag = name.replace("_", "-")
            command.error(f"--{flag} {value!r}: must be tcp://127.0.0.1:PORT or tcp://[::1]:PORT")
    for entry in a.series:
        if not _SERIES.fullmatch(entry):
            command.error(f"--series {entry!r}: must be NAME=SERIES, both names of series")
