"""Command line and environment of the engine process -> one frozen `EngineConfig`.

Every option has an environment fallback where the container contract names one, so that the
operator can render pods with either. Nothing else reads `os.environ`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from pdserve import __version__
from pdserve.engines import credentials
from pdserve.engines.credentials import Credential
from pdserve.refengine.model.arithmetic import EXACT, Arithmetic, Backend, Dtype, Mode
from pdserve.wire import names

EngineRole = Literal["prefill", "decode", "both"]
MAX_MEMBERS = 64
MAX_SLOTS = 4096
MAX_BODY_BYTES = (4 << 20) + (64 << 10)
"""A gateway takes bodies of 4 MiB from clients, and its legs add their parameters to them."""


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Everything that does not change during the life of an engine process.

    `slots` is b_p of a prefill and b_d of a decode (or of `both`); `prefetch` is how many more
    requests a decode takes in while all slots run. `lease_seconds` bounds how long KV is kept for
    a decode that never comes. `pace_factor` dilates every time of the `paced` profile.
    """

    role: EngineRole = "both"
    members: int = 1
    """PDSERVE_MEMBERS: processes that share the model's layers and are one instance."""
    member: int = 0
    """PDSERVE_MEMBER: which of them this is; 0 leads, and answers requests."""
    bind: str = "127.0.0.1"
    advertise: str = ""
    """Host at which peers reach this process, where `bind` is a wildcard; empty: `bind`."""
    port: int = names.PORT_HTTP
    transfer_port: int = names.PORT_TRANSFER
    instance: str = "engine"
    token: str = ""
    """PDSERVE_TOKEN: stands for control, requests and KV where nothing more special is given."""
    control: Credential = dataclasses.field(default_factory=Credential)
    request: Credential = dataclasses.field(default_factory=Credential)
    kv_key: str = ""
    """Stands for `token` between instances that got no grant."""
    service: str = ""
    scenario: str = ""
    model_name: str = "reference"
    weights: Path | None = None
    arithmetic: Arithmetic = EXACT
    """How the model is computed."""
    slots: int = 4
    prefill_slots: int = 0
    """What `slots` is in role prefill; 0: as in the other one."""
    decode_slots: int = 0
    prefetch: int = 2
    decode_prefetch: int = 2
    """What `prefetch` is in role decode."""
    max_batch_tokens: int = 1024
    chunk_tokens: int = 512
    local_chunk_tokens: int = 512
    """Most prompt tokens of a decode's step while answers run there."""
    kv_tokens: int = 0
    max_model_len: int = 0
    prefix_cache: bool = True
    lease_seconds: float = 30.0
    transfer_timeout: float = 10.0
    max_body_bytes: int = MAX_BODY_BYTES
    drain_seconds: float = 25.0
    """After SIGTERM streams get this long to finish; a pod's grace period must be longer."""
    arrival_seconds: float = 30.0
    """Until a request that began has arrived, and until a client takes what is written to it."""
    paced: str = ""
    pace_factor: float = 1.0

    @property
    def flips(self) -> bool:
        """Whether it can take the other role while it runs."""
        return self.role != "both" and self.members == 1

    def in_role(self, role: EngineRole, port: int, transfer_port: int) -> EngineConfig:
        """The same process in another role, at the ports at which it listens."""
        prefetch = self.decode_prefetch if role == "decode" else 0
        slots = self.decode_slots if role == "decode" else self.prefill_slots
        return dataclasses.replace(
            self,
            role=role,
            slots=slots or self.slots,
            prefetch=prefetch,
            port=port,
            transfer_port=transfer_port,
        )


def parser() -> argparse.ArgumentParser:
    """The command line; `pdserve-engine --help` is its documentation."""
    p = argparse.ArgumentParser(prog="pdserve-engine", description="pdserve reference engine")
    p.add_argument("--version", action="version", version=__version__)
    p.add_argument("--role", choices=("prefill", "decode", "both"), help="PDSERVE_ROLE; both")
    p.add_argument(
        "--bind",
        metavar="HOST",
        help="address to listen on; PDSERVE_BIND; 127.0.0.1 (peers get PDSERVE_POD_IP)",
    )
    p.add_argument("--port", type=int, default=names.PORT_HTTP, help="HTTP port; 0 picks one")
    p.add_argument("--transfer-port", type=int, default=names.PORT_TRANSFER, help="KV port")
    p.add_argument("--instance", help="peer id; PDSERVE_INSTANCE; the host name")
    p.add_argument("--model-name", default="reference", help="name in /v1/models")
    p.add_argument(
        "--weights", type=Path, metavar="PATH", help="directory or GGUF file; built-in if absent"
    )
    p.add_argument(
        "--arithmetic",
        choices=get_args(Mode),
        help="exact: results do not depend on the batch; fast: more tokens per second; "
        "exact with numpy, fast with torch",
    )
    p.add_argument("--backend", choices=get_args(Backend), default="numpy", help="what multiplies")
    p.add_argument(
        "--dtype", choices=get_args(Dtype), default="float32", help="of weights; torch has both"
    )
    p.add_argument("--device", default="auto", help="of torch; auto: the first GPU, else the CPU")
    p.add_argument("--threads", type=int, default=1, help="of one product, with torch on a CPU")
    p.add_argument(
        "--slots", type=int, default=4,
        help=f"requests at once; 4; {names.PREFILL_SLOTS}, {names.DECODE_SLOTS}: by role",
    )  # fmt: skip
    p.add_argument("--prefetch", type=int, default=2, help="decode: extra requests taken in early")
    p.add_argument("--max-batch-tokens", type=int, default=1024, help="prompt tokens in one step")
    p.add_argument("--chunk-tokens", type=int, default=512, help="prompt tokens per request, step")
    p.add_argument(
        "--local-chunk-tokens",
        type=int,
        default=512,
        help="decode: prompt tokens in one step while answers run",
    )
    p.add_argument("--kv-tokens", type=int, default=0, help="KV pool size; 0: all slots at maximum")
    p.add_argument("--max-model-len", type=int, default=0, help="context limit; 0: the model's")
    p.add_argument("--no-prefix-cache", action="store_true", help="recompute every prompt")
    p.add_argument("--lease-seconds", type=float, default=30.0, help="how long KV waits for a pull")
    p.add_argument("--transfer-timeout", type=float, default=10.0, help="seconds for one KV pull")
    p.add_argument(
        "--max-body-bytes", type=int, default=MAX_BODY_BYTES, help="larger bodies get 413"
    )
    p.add_argument(
        "--drain-seconds",
        type=float,
        help="how long streams may go on after SIGTERM; PDSERVE_DRAIN_SECONDS; 25",
    )
    p.add_argument("--arrival-seconds", type=float, default=30.0, help="slower clients get 408")
    p.add_argument("--paced", default="", metavar="PROFILE", help="preset name or JSON file")
    p.add_argument("--pace-factor", type=float, default=1.0, help="dilates the profile's times")
    return p


def parse(argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None) -> EngineConfig:
    """Options, then environment, then defaults; exits with a message on a contradiction."""
    env = os.environ if env is None else env
    command = parser()
    a = command.parse_args(argv)
    role = a.role or env.get("PDSERVE_ROLE") or "both"
    if role not in ("prefill", "decode", "both"):
        command.error(f"PDSERVE_ROLE: {role!r} is none of prefill, decode, both")
    if a.drain_seconds is None:
        # Kubernetes kills after 30 s by default.
        a.drain_seconds = _seconds(command, env, "PDSERVE_DRAIN_SECONDS", 25.0)
    _check(command, a)
    arithmetic = _arithmetic(command, a)
    control = Credential.of(env, credentials.CONTROL, shared=False)
    if role != "both" and not (env.get(credentials.SHARED) or control.configured):
        command.error(
            f"role {role} needs the operator's credential in {credentials.CONTROL}_FILE or "
            f"{credentials.CONTROL}, or the service's secret in {credentials.SHARED}"
        )
    bind = a.bind or env.get("PDSERVE_BIND") or "127.0.0.1"
    members, member = _members(command, env, role, arithmetic)
    prefill_slots, decode_slots = _slots_by_role(command, env)
    return EngineConfig(
        role=cast(EngineRole, role),
        members=members,
        member=member,
        bind=bind,
        advertise=env.get("PDSERVE_POD_IP", ""),
        port=a.port,
        transfer_port=a.transfer_port,
        instance=a.instance or env.get("PDSERVE_INSTANCE") or socket.gethostname(),
        token=env.get(credentials.SHARED, ""),
        control=control,
        request=Credential.of(env, credentials.REQUEST, shared=False),
        kv_key=Credential.of(env, credentials.KV, shared=False).first,
        service=env.get("PDSERVE_SERVICE", ""),
        scenario=env.get("PDSERVE_SCENARIO", ""),
        model_name=a.model_name,
        weights=a.weights,
        arithmetic=arithmetic,
        slots={"prefill": prefill_slots, "decode": decode_slots}.get(role) or a.slots,
        prefill_slots=prefill_slots,
        decode_slots=decode_slots,
        prefetch=a.prefetch if role == "decode" else 0,
        decode_prefetch=a.prefetch,
        max_batch_tokens=a.max_batch_tokens,
        chunk_tokens=a.chunk_tokens,
        local_chunk_tokens=a.local_chunk_tokens,
        kv_tokens=a.kv_tokens,
        max_model_len=a.max_model_len,
        prefix_cache=not a.no_prefix_cache,
        lease_seconds=a.lease_seconds,
        transfer_timeout=a.transfer_timeout,
        max_body_bytes=a.max_body_bytes,
        drain_seconds=a.drain_seconds,
        arrival_seconds=a.arrival_seconds,
        paced=a.paced,
        pace_factor=a.pace_factor,
    )


def _arithmetic(command: argparse.ArgumentParser, a: argparse.Namespace) -> Arithmetic:
    mode: Mode = a.arithmetic or ("fast" if a.backend == "torch" else "exact")
    found = Arithmetic(mode, a.backend, a.dtype, a.device, a.threads)
    problem = found.problem()
    if problem is not None:
        command.error(f"--arithmetic, --backend, --dtype, --device, --threads: {problem}")
    return found


def _members(
    command: argparse.ArgumentParser, env: Mapping[str, str], role: str, arithmetic: Arithmetic
) -> tuple[int, int]:
    texts = env.get("PDSERVE_MEMBERS") or "1", env.get("PDSERVE_MEMBER") or "0"
    if not all(text.isascii() and text.isdigit() and len(text) < 4 for text in texts):
        command.error(f"PDSERVE_MEMBERS, PDSERVE_MEMBER: {texts} are no numbers")
    members, member = map(int, texts)
    if not member < members <= MAX_MEMBERS:
        command.error(
            f"PDSERVE_MEMBER {member} of PDSERVE_MEMBERS {members}: at most {MAX_MEMBERS}"
        )
    if members > 1 and role == "both":
        command.error("an instance of several members is a prefill or a decode: give --role")
    if members > 1 and arithmetic.backend != "numpy":
        command.error("an instance of several members computes with --backend numpy")
    return members, member


def _slots_by_role(command: argparse.ArgumentParser, env: Mapping[str, str]) -> tuple[int, int]:
    """Of prefill and decode; 0: as `--slots` says."""
    found = []
    for name in (names.PREFILL_SLOTS, names.DECODE_SLOTS):
        text = env.get(name) or "0"
        if not (text.isascii() and text.isdigit() and len(text) < 5 and int(text) <= MAX_SLOTS):
            command.error(f"{name}: {text!r} is no number of slots up to {MAX_SLOTS}")
        found.append(int(text))
    return found[0], found[1]


def _seconds(
    command: argparse.ArgumentParser, env: Mapping[str, str], name: str, default: float
) -> float:
    try:
        return float(env.get(name) or default)
    except ValueError:
        command.error(f"{name}: {env[name]!r} is not a number of seconds")


def _check(command: argparse.ArgumentParser, a: argparse.Namespace) -> None:
    limits: tuple[tuple[str, float, float], ...] = (
        ("slots", 1, MAX_SLOTS),
        ("threads", 1, 1024),
        ("prefetch", 0, 4096),
        ("port", 0, 65535),
        ("transfer_port", 0, 65535),
        ("max_batch_tokens", 1, 1 << 20),
        ("chunk_tokens", 1, 1 << 20),
        ("local_chunk_tokens", 1, 1 << 20),
        ("kv_tokens", 0, 1 << 30),
        ("max_model_len", 0, 1 << 20),
        ("lease_seconds", 0.1, 3600),
        ("transfer_timeout", 0.1, 600),
        ("max_body_bytes", 1024, 1 << 30),
        ("drain_seconds", 0, 7200),
        ("arrival_seconds", 0.1, 3600),
        ("pace_factor", 0.01, 1000),
    )
    for name, low, high in limits:
        value = getattr(a, name)
        if not low <= value <= high:
            command.error(f"--{name.replace('_', '-')} {value}: must be from {low:g} to {high:g}")
    if a.pace_factor != 1.0 and not a.paced:
        command.error("--pace-factor only means something with --paced PROFILE")
