"""Starts, finds and ends local clusters: what `pdserve local up|status|down` does.

One cluster is one state directory and one `daemon` process. `up` on a running cluster changes
nothing; `down` leaves nothing, not even the directory; clusters of different names run side by
side. An `owned` cluster also ends with the process that started it (for tests).
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from localcluster import processes
from localcluster.admin import Admin
from localcluster.errors import LocalError, Progress, log_tail, quiet
from localcluster.paths import ClusterFiles
from localcluster.plan import LOCK, LOG, PLAN, PROBLEM, READY, ClusterPlan
from pdserve.terms.json import JsonObject

START_TIMEOUT = 1200.0
"""Includes building the control plane on a machine's first start."""
_STOP_TIMEOUT = 30.0
_POLL_SECONDS = 0.05
"""How often the daemon's files and lock are looked at: another process's announce nothing."""


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """A cluster as seen from outside. `problem` says why it is not running, if it should be."""

    running: bool
    kubeconfig: Path
    server: str = ""
    problem: str = ""
    details: JsonObject | None = None
    """What `Admin.status` answers, when running."""


class LocalCluster(ClusterFiles):
    """One local cluster by name, running or not."""

    @property
    def admin(self) -> Admin:
        """Faults and details of the running cluster."""
        return Admin(self.state_dir)

    @property
    def log(self) -> Path:
        """Log of the daemon: progress, node agent events."""
        return self.state_dir / LOG

    def up(
        self,
        plan: ClusterPlan,
        progress: Progress = quiet,
        *,
        owned: bool = False,
        timeout: float = START_TIMEOUT,
    ) -> None:
        """Start it and return when all nodes are registered; nothing if it runs already.

        Raises:
            LocalError: it runs with another plan, or cannot start (nothing is left then, but the
                logs, whose place the message names).
        """
        self._own_directory()
        with self._exclusive():
            if self._pid() is not None:
                if ClusterPlan.load(self.state_dir) != plan:
                    raise LocalError(
                        f"cluster {self.name!r} already runs with another configuration; "
                        "end it first (down), or give this one another name"
                    )
                progress(f"cluster {self.name!r} is already running")
                return
            self._clean()
            plan.save(self.state_dir)
            (self.state_dir / LOCK).write_text("")  # not the process id of a former cluster
            self.log.parent.mkdir(exist_ok=True)
            daemon = self._spawn(owned)
            try:
                self._wait_ready(daemon, progress, timeout)
            except BaseException:
                self._end()
                raise

    def down(self) -> bool:
        """End it and remove all it left; False if there was nothing."""
        if not self.state_dir.is_dir() or self._foreign_entries():
            return False
        existed = (self.state_dir / PLAN).exists()
        self._end()
        self._clean()
        shutil.rmtree(self.state_dir / "logs", ignore_errors=True)
        for leftover in self.state_dir.glob("*.lock"):
            leftover.unlink()
        if not any(self.state_dir.iterdir()):
            self.state_dir.rmdir()
        return existed

    def status(self) -> ClusterStatus:
        """Whether it runs, and what runs in it."""
        if self._pid() is None or not (self.state_dir / READY).exists():
            problem = self.state_dir / PROBLEM
            said = problem.read_text(encoding="utf-8") if problem.exists() else ""
            return ClusterStatus(False, self.kubeconfig, problem=said)
        try:
            ready = json.loads((self.state_dir / READY).read_text(encoding="utf-8"))
            details = self.admin.status()
        except (LocalError, OSError) as error:
            return ClusterStatus(False, self.kubeconfig, problem=f"is ending, or hangs: {error}")
        return ClusterStatus(True, self.kubeconfig, ready["server"], details=details)

    def _own_directory(self) -> None:
        """Refuse a directory that holds anything but a cluster: `down` would delete it."""
        self.state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if foreign := self._foreign_entries():
            raise LocalError(
                f"{self.state_dir} holds other things ({', '.join(foreign[:3])}); "
                "choose an empty directory for a cluster's state"
            )

    def _foreign_entries(self) -> list[str]:
        """What a directory that no cluster made holds; it must not be touched."""
        names = {entry.name for entry in self.state_dir.iterdir()}
        return [] if PLAN in names else sorted(names - {"up.lock", LOCK, "logs"})

    def _spawn(self, owned: bool) -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-m", "localcluster.daemon", str(self.state_dir)]
        if owned:
            return processes.spawn(argv, log=self.log)
        with self.log.open("ab") as output:
            return subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _wait_ready(
        self, daemon: subprocess.Popen[bytes], progress: Progress, timeout: float
    ) -> None:
        deadline = processes.Deadline(timeout)
        with self.log.open(encoding="utf-8", errors="replace") as log:
            while True:
                ready = (self.state_dir / READY).exists()
                ended = daemon.poll() is not None
                for line in log.readlines():
                    if line.startswith("# "):
                        progress(line[2:].rstrip())
                if ready and not ended:
                    return
                if ended:
                    problem = self.state_dir / PROBLEM
                    said = problem.read_text() if problem.exists() else log_tail(self.log)
                    raise LocalError(f"cluster {self.name!r} did not start: {said}")
                if deadline.passed:
                    raise LocalError(
                        f"cluster {self.name!r} was not ready after {timeout:g} s; end of "
                        f"{self.log}:\n{log_tail(self.log)}"
                    )
                time.sleep(_POLL_SECONDS)  # nothing announces it

    def _pid(self) -> int | None:
        """Process id of the daemon if it lives: it holds the lock then."""
        try:
            with (self.state_dir / LOCK).open("r+") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                except BlockingIOError:
                    return int(lock.read() or 0) or None
        except FileNotFoundError:
            return None
        return None

    def _end(self) -> None:
        """Stop the daemon, in order if it can, and wait until it is gone."""
        deadline = processes.Deadline(_STOP_TIMEOUT)
        sent: signal.Signals | None = None
        while (pid := self._pid()) is not None:
            wanted = signal.SIGKILL if deadline.passed else signal.SIGTERM
            if wanted is not sent:
                os.kill(pid, wanted)
                sent = wanted
                ending = pid
            time.sleep(_POLL_SECONDS)  # nothing announces it
        # It lets go of its lock a moment before it exits.
        while sent is not None and processes.is_alive(ending) and not deadline.passed:
            time.sleep(_POLL_SECONDS)  # nothing announces it

    def _clean(self) -> None:
        """Remove what an ended cluster left, except logs and locks."""
        for entry in self.state_dir.iterdir():
            if entry.name == "logs" or entry.name.endswith(".lock"):
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with (self.state_dir / "up.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
