"""Operator processes of a test's own, started in milliseconds and ended without mercy.

Importing the operator takes a second or two of CPU, so one process does it once and forks an
operator per request (`python -m tests.support.operator_process`: a JSON line in, a pid out; at
the end of its input it ends with all it started). What runs in the fork is the operator's own
`main`, with its flags.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.engines import fresh_host
from tests.support.scenarios import READY_SECONDS, until

from localcluster import processes
from pdserve import __version__
from pdserve.wire import names

ROOT = Path(__file__).resolve().parents[2]
_SAMPLE = re.compile(r'^rest_client_requests_total\{code="([^"]*)",method="([^"]*)"\} (\S+)$', re.M)


@dataclass(frozen=True)
class Operator:
    """One running operator."""

    pid: int
    url: str
    log: Path

    def metrics(self) -> str:
        """Its metrics, waited for; "" only while it does not serve them yet."""
        try:
            with urllib.request.urlopen(f"{self.url}/metrics", timeout=READY_SECONDS) as reply:
                return str(reply.read().decode())
        except urllib.error.URLError as error:
            if not isinstance(error.reason, ConnectionRefusedError):
                raise
            assert processes.is_alive(self.pid), self._ended()
            return ""

    def writes(self) -> int:
        """Requests to the API server so far that were not reads."""
        found = _SAMPLE.findall(self.metrics())
        return sum(int(float(value)) for _, method, value in found if method != "GET")

    def reconciles(self) -> dict[str, int]:
        """Successful reconciliations by controller."""
        pattern = (
            r'^controller_runtime_reconcile_total\{controller="(\w+)",result="success"\} (\S+)$'
        )
        found = re.findall(pattern, self.metrics(), re.M)
        return {controller: int(float(value)) for controller, value in found}

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        try:
            os.kill(self.pid, signal.SIGKILL)
        except ProcessLookupError as error:
            raise AssertionError(self._ended()) from error
        until("the operator is gone", lambda: not processes.is_alive(self.pid))

    def _ended(self) -> str:
        return f"the operator had ended by itself:\n{self.tail()}"

    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-4000:]


class OperatorForge:
    """Starts operators on one cluster."""

    def __init__(self, kubeconfig: Path, directory: Path) -> None:
        self._kubeconfig = kubeconfig
        self._directory = directory
        self._count = 0
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.operator_process"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'operator'}:{ROOT}"},
            preexec_fn=processes.die_with_parent,
        )

    def start(self, *flags: str) -> Operator:
        """A new operator that acts at once (no Lease)."""
        self._count += 1
        # An address of its own and the usual port: a free one may be gone when it is bound.
        host = fresh_host()
        log = self._directory / f"operator-{self._count}.log"
        argv = [
            f"--kubeconfig={self._kubeconfig}", "--no-leader-election",
            f"--bind={host}", f"--metrics-port={names.PORT_METRICS}",
            f"--gateway-image=pdserve/gateway:{__version__}", *flags,
        ]  # fmt: skip
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps({"argv": argv, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        return Operator(pid, f"http://{host}:{names.PORT_METRICS}", log)

    def close(self) -> None:
        """End the forge and every operator it started."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


@contextmanager
def forge(kubeconfig: Path, directory: Path) -> Iterator[OperatorForge]:
    """An `OperatorForge` that is closed at the end."""
    made = OperatorForge(kubeconfig, directory)
    try:
        yield made
    finally:
        made.close()


def _serve() -> None:
    # `main` imports the rest late; here it is to be imported once, before the forks.
    import pdserve.controllers.app  # noqa: F401
    from pdserve.controllers.__main__ import main

    # Ended children are not waited for: the kernel clears them away.
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    children: list[int] = []
    for line in sys.stdin:
        request = json.loads(line)
        pid = os.fork()
        if pid == 0:
            _become_operator(request["log"])
            sys.argv = ["pdserve-operator", *request["argv"]]
            sys.exit(main())
        children.append(pid)
        print(pid, flush=True)
    for pid in children:
        if processes.is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def _become_operator(log: str) -> None:
    processes.die_with_parent()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    null = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for source, target in ((null, 0), (out, 1), (out, 2)):
        os.dup2(source, target)


if __name__ == "__main__":
    _serve()
