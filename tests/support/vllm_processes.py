"""Real vLLM servers on this machine's CPU: one prefill and one decode, started as pods start them.

The command line is the adapter's (`engines.vllm.pod`); what is added is for a CPU, and for two
servers on one address. `PDSERVE_TEST_VLLM` names the interpreter of an environment with vLLM and
NIXL, `PDSERVE_TEST_VLLM_MODEL` a directory with a model; docs/engines/vllm.md says how both are
made.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.support.gateway_rig import Answer, metric_values
from tests.support.proxy_rig import ask

from pdserve.engines.pod_parts import InstanceFacts, PodParts
from pdserve.engines.vllm.pod import POD
from pdserve.terms import Role

INTERPRETER, WEIGHTS = (os.environ.get(f"PDSERVE_TEST_VLLM{name}", "") for name in ("", "_MODEL"))
NAME = "smol"
needs_vllm = pytest.mark.skipif(
    not (INTERPRETER and WEIGHTS),
    reason="PDSERVE_TEST_VLLM and PDSERVE_TEST_VLLM_MODEL are not set",
)
CPU = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "UCX_TLS": "tcp",
    "UCX_NET_DEVICES": "lo",
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class VllmProcess:
    """One server."""

    role: Role
    slots: int
    port: int = field(default_factory=free_port)
    side_port: int = field(default_factory=free_port)
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="vllm-test-")))
    _process: subprocess.Popen[bytes] | None = None

    @property
    def facts(self) -> InstanceFacts:
        return InstanceFacts(self.role, self.slots, 1, NAME, WEIGHTS)

    @property
    def parts(self) -> PodParts:
        """What the adapter gives a pod of this server."""
        return POD.parts(self.facts)

    def start(self) -> VllmProcess:
        parts = self.parts
        transfer = json.dumps({**POD.transfer_config(self.facts), "kv_buffer_device": "cpu"})
        words = [word.replace("$(PDSERVE_DRAIN_SECONDS)", "5") for word in parts.args]
        words += ["--port", str(self.port), "--kv-transfer-config", transfer, "--enforce-eager",
                  "--dtype", "float32", "--max-model-len", "1024"]  # fmt: skip
        given = {name: self._value(value) for name, value in {**parts.env, **CPU}.items()}
        command = Path(INTERPRETER).with_name(parts.command[0])
        with (self.folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [str(command), *parts.command[1:], *words],
                env={**os.environ, **given, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(self.side_port)},
                stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd=self.folder,
            )  # fmt: skip
        return self

    def _value(self, text: str) -> str:
        return text.replace("$(PDSERVE_POD_IP)", "127.0.0.1").replace("/cache", str(self.folder))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(errors="replace")[-3000:]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self) -> None:
        """SIGKILL to it and to all that it started."""
        if self._process is not None:
            try:
                os.killpg(self._process.pid, signal.SIGKILL)
            except ProcessLookupError:
                return
            self._process.wait(60)

    async def generate(self, **body: Any) -> Answer:
        """A request to the server itself, which it serves alone."""
        path = "/v1/chat/completions" if "messages" in body else "/v1/completions"
        return await ask(self.port, "POST", path, {"model": NAME, "temperature": 0, **body})

    async def metric(self, name: str, **labels: str) -> float:
        """Sum of the server's series of a name."""
        text = (await ask(self.port, "GET", "/metrics")).body.decode()
        return sum(metric_values(text, name, labels))


def check_started(processes: list[VllmProcess]) -> Callable[[], None]:
    """Fail with a server's log when one of them has ended."""

    def check() -> None:
        for process in processes:
            assert process.running, process.log

    return check
