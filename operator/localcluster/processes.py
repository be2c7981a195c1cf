"""Child processes that cannot outlive this one, however it ends.

Linux kills a child when its parent *thread* ends (PR_SET_PDEATHSIG), so every child is started
from one thread that lives as long as the process. That covers SIGKILL of the parent, which no
`finally` or `atexit` does. The children of a child are not covered; those of pods are, because the
node agent puts each container in a namespace of its own (`agent.sandbox`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_SPAWNER = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spawner")


def die_with_parent() -> None:
    """In a fresh child: be killed when the thread that forked it ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def spawn(
    argv: Sequence[str],
    *,
    log: Path,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` in its own session, output appended to `log`; it dies with this process.

    Ctrl-C while it starts ends it: the caller does not have it yet.
    """

    def start() -> subprocess.Popen[bytes]:
        parent = os.getpid()

        def in_child() -> None:
            die_with_parent()
            if os.getppid() != parent:
                os._exit(1)

        with log.open("ab") as output:
            return subprocess.Popen(
                list(argv),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=cwd,
                env=None if env is None else dict(env),
                start_new_session=True,
                preexec_fn=in_child,  # noqa: PLW1509 - only a system call, safe after fork
            )

    starting = _SPAWNER.submit(start)
    try:
        return starting.result()
    except BaseException:
        if not starting.cancel() and starting.exception() is None:
            stop(starting.result())
        raise


def stop(process: subprocess.Popen[bytes], grace: float = 5.0) -> None:
    """End a child and wait for it: SIGTERM, after `grace` seconds SIGKILL of its whole session."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=grace)
        except subprocess.TimeoutExpired:
            kill_group(process.pid)
            process.wait()
    kill_group(process.pid)


def kill_group(pid: int) -> None:
    """SIGKILL every process of the group that process `pid` leads; none left is fine."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def rss_bytes(pid: int) -> int:
    """Resident memory of a process in bytes; 0 when it is gone."""
    try:
        fields = Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()
    except OSError:
        return 0
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


class Deadline:
    """A point in monotonic time; `left()` in seconds, never below 0."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Seconds until the deadline; 0 once it passed."""
        return max(0.0, self._end - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether no time is left."""
        return self.left() == 0.0
