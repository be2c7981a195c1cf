"""The processes that `gateway.py` compares: our gateway and vllm-router, each pinned to one core.

vllm-router is no dependency of the project: the bench makes a virtual environment of its own for
it under build/bench, and says so where that cannot be done.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import OUT, ROOT
from benchmarks.parts.gateway_stub import Stubs
from tests.support.gateway_process import write_routes

from pdserve.terms import Slo

ROUTER = "vllm-router"
ROUTER_VERSION = "0.1.17"
WIDE = Slo(ttft=60.0, handoff=60.0, tpot=60.0, attainment=0.99)
_TICK = os.sysconf("SC_CLK_TCK")
_START_SECONDS = 60.0
_PINNED = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Becomes the command on the one core, which its threads inherit."""
_INSTALL_SECONDS = 240.0


@dataclass
class Rival:
    """One running process, with its port."""

    name: str
    port: int
    process: subprocess.Popen[bytes]

    @property
    def cpu(self) -> float:
        """Seconds of CPU that it took, user and system, all threads; in steps of 10 ms."""
        stat = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / _TICK

    @property
    def rss(self) -> int:
        """Resident bytes."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) * 1024

    def stop(self) -> None:
        """Kill it and wait for its end."""
        self.process.kill()
        self.process.wait()


def cores() -> tuple[int, int]:
    """The core of the gateways and that of everything else; the same where there is one only."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


INTERPRETED = "pdserve, interpreted"
COMPILED = ROOT / "build" / "compiled"


def compile_ours() -> str:
    """Compile the gateway as its image has it (hack/compile.py); why not, or an empty text."""
    command = [sys.executable, str(ROOT / "hack" / "compile.py"), str(COMPILED), "--optimize", "3"]
    done = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
    return done.stderr.strip()[-2000:] if done.returncode else ""


async def our_gateway(
    stubs: Stubs, core: int, *arguments: str, compiled: bool, name: str = "pdserve"
) -> Rival:
    """`pdserve-gateway` as a process, with every stub in one group.

    `compiled`: with the C extensions of `compile_ours`.

    Raises:
        OSError: it did not start.
    """
    OUT.mkdir(parents=True, exist_ok=True)
    routes, port = OUT / "gateway-routes.json", _free_port()
    write_routes(routes, WIDE, *stubs.routes, model="reference")
    env = {k: v for k, v in os.environ.items() if not k.startswith("PDSERVE_")}
    if compiled:
        env["PYTHONPATH"] = str(COMPILED)
    command = [
        sys.executable, "-m", "pdserve.gateway", "--port", str(port), "--routes", f"file:{routes}",
        *arguments,
    ]  # fmt: skip
    rival = _start(name, port, command, core, env | {"PDSERVE_TOKEN": "bench-token"})
    await _answers(rival, b"/readyz")
    return rival


async def router(stubs: Stubs, core: int) -> Rival:
    """vllm-router in P/D mode over the same stubs, with its cheapest policy.

    Raises:
        OSError: it did not start.
    """
    port = _free_port()
    command = [
        str(_environment() / "bin" / ROUTER), "--vllm-pd-disaggregation", "--host", "127.0.0.1",
        "--port", str(port), "--policy", "round_robin", "--log-level", "error",
        "--prometheus-port", str(_free_port()),
    ]  # fmt: skip
    for role, option in (("prefill", "--prefill"), ("decode", "--decode")):
        for route in stubs.of("prefill" if role == "prefill" else "decode"):
            command += [option, route.endpoint]
    rival = _start(f"{ROUTER} {ROUTER_VERSION}", port, command, core, dict(os.environ))
    await _answers(rival, b"/health")
    return rival


def install_router(say: Callable[[str], None]) -> str:
    """Make vllm-router's environment once; the reason where that cannot be done, else empty."""
    target = _environment()
    if (target / "bin" / ROUTER).exists():
        return ""
    say(f"installing {ROUTER} {ROUTER_VERSION} into {target.relative_to(ROOT)}")
    try:
        venv.create(target, with_pip=True)
        subprocess.run(
            [
                target / "bin" / "python", "-m", "pip", "install", "-q",
                "--disable-pip-version-check", f"{ROUTER}=={ROUTER_VERSION}",
            ],
            check=True, capture_output=True, timeout=_INSTALL_SECONDS,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError) as error:
        reason = getattr(error, "stderr", None) or str(error).encode()
        return f"{ROUTER} {ROUTER_VERSION} cannot be installed: {reason[-300:].decode()}"
    return ""


def _environment() -> Path:
    return OUT / f"router-{ROUTER_VERSION}"


def _start(name: str, port: int, command: list[str], core: int, env: dict[str, str]) -> Rival:
    with (OUT / "gateway-processes.log").open("ab") as log:
        pinned = [sys.executable, "-c", _PINNED, str(core), *command]
        process = subprocess.Popen(pinned, env=env, stdout=subprocess.DEVNULL, stderr=log)
    return Rival(name, port, process)


async def _answers(rival: Rival, path: bytes) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if rival.process.poll() is not None:
            raise OSError(f"{rival.name} ended with {rival.process.returncode}")
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", rival.port)
            writer.write(b"GET %b HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n" % path)
            head = await reader.read(64)
            writer.close()
        except OSError:
            head = b""
        if head.startswith(b"HTTP/1.1 200"):
            return
        await asyncio.sleep(0.1)
    rival.stop()
    raise OSError(f"{rival.name} did not answer within {_START_SECONDS:g} s")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])
