"""Starts a container's program with its own mounts and process ids, and reaches into it later.

Uses `unshare` and `nsenter` of util-linux: no root needed where the kernel lets users make
namespaces. The process-id namespace also guarantees that nothing a container started outlives it.
Where namespaces are not allowed, a container is a plain process: mount paths in its command line
and environment are then replaced by the directories themselves, and `Sandbox.why_not` says so.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pdserve.local import processes

_LAUNCH = Path(__file__).with_name("launch.py")
_NAMESPACES = ("--user", "--map-root-user", "--mount", "--pid")


@dataclass(frozen=True, slots=True)
class Mount:
    """`source` of this machine shown at the absolute path `target` in the container."""

    source: Path
    target: str
    read_only: bool


@dataclass(frozen=True, slots=True)
class Launch:
    """One container about to start. `directory` is its own, and empties between starts."""

    argv: Sequence[str]
    env: Mapping[str, str]
    workdir: str
    mounts: Sequence[Mount]
    directory: Path
    log: Path


class RunningContainer:
    """A started container: wait for it, signal it, run something inside it."""

    def __init__(
        self, process: subprocess.Popen[bytes], pid_file: Path | None, launch: Launch
    ) -> None:
        self._process = process
        self._pid_file = pid_file
        self._launch = launch
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self._pidfd = os.pidfd_open(process.pid)
        asyncio.get_running_loop().add_reader(self._pidfd, self._reap)

    def _reap(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pidfd)
        os.close(self._pidfd)
        code = self._process.wait()
        processes.kill_group(self._process.pid)
        if not self._ended.done():
            self._ended.set_result(code)

    async def wait(self) -> int:
        """Exit code; negative: ended by that signal."""
        return await asyncio.shield(self._ended)

    @property
    def pid(self) -> int | None:
        """The program's process id on this machine; None while it is still being started."""
        if self._pid_file is None:
            return self._process.pid
        try:
            return int(self._pid_file.read_text(encoding="ascii"))
        except OSError:
            return None

    def terminate(self) -> None:
        """SIGTERM to the program; one that is not running yet is killed."""
        if self._ended.done():
            return
        pid = self.pid
        if pid is None:
            self.kill()
            return
        _signal(pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything in the container."""
        if self._ended.done():
            return
        for pid in _tree(self._process.pid):
            _signal(pid, signal.SIGKILL)

    def freeze(self, frozen: bool) -> None:
        """Stop (or continue) every process of the container, which none of them can notice."""
        for pid in _tree(self.pid or self._process.pid):
            _signal(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in this container's namespaces."""
        if self._pid_file is None:
            return list(argv)
        enter = ["nsenter", "--target", str(self.pid), "--user", "--preserve-credentials"]
        return [*enter, "--mount", "--pid", "--root", "--wd", "--", *argv]

    @property
    def env(self) -> Mapping[str, str]:
        """The container's environment, for what runs inside it."""
        return self._launch.env


class Sandbox:
    """Starts containers. `why_not` is None where namespaces work, else the reason they do not."""

    def __init__(self) -> None:
        self.why_not = _probe()

    def start(self, launch: Launch) -> RunningContainer:
        """Start a container; OSError if the machine cannot start any process."""
        shutil.rmtree(launch.directory, ignore_errors=True)
        launch.directory.mkdir(parents=True)
        if self.why_not is not None:
            return self._start_plain(launch)
        root = launch.directory / "root"
        root.mkdir()
        pid_file = launch.directory / "pid"
        spec = launch.directory / "spec.json"
        document = {
            "argv": list(launch.argv),
            "env": dict(launch.env),
            "workdir": launch.workdir,
            "root": str(root),
            "pid_file": str(pid_file),
            "mounts": [
                {"source": str(m.source), "target": m.target, "read_only": m.read_only}
                for m in launch.mounts
            ],
        }
        spec.touch(mode=0o600)
        spec.write_text(json.dumps(document), encoding="utf-8")
        argv = [
            "unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--",
            sys.executable, "-I", "-S", str(_LAUNCH), str(spec),
        ]  # fmt: skip
        process = processes.spawn(argv, log=launch.log, cwd=Path("/"))
        return RunningContainer(process, pid_file, launch)

    def _start_plain(self, launch: Launch) -> RunningContainer:
        env = {name: without_mounts(v, launch.mounts) for name, v in launch.env.items()}
        argv = [without_mounts(part, launch.mounts) for part in launch.argv]
        workdir = Path(without_mounts(launch.workdir, launch.mounts))
        process = processes.spawn(argv, log=launch.log, cwd=workdir, env=env)
        return RunningContainer(process, None, launch)


def without_mounts(text: str, mounts: Sequence[Mount]) -> str:
    """`text` with every mount's target, at a path's start, replaced by its source."""
    for mount in sorted(mounts, key=lambda m: len(m.target), reverse=True):
        target = mount.target.rstrip("/")
        head, found, tail = text.partition(target)
        starts_a_path = not head or head[-1] in "=:, "
        if found and starts_a_path and (not tail or tail[0] in "/:, "):
            return f"{head}{mount.source}{tail}"
    return text


def _probe() -> str | None:
    for tool in ("unshare", "nsenter"):
        if shutil.which(tool) is None:
            return f"no `{tool}` (util-linux) on this machine"
    argv = ["unshare", *_NAMESPACES, "--fork", "--kill-child=KILL", "--"]
    script = "mount -t tmpfs tmpfs /mnt"
    done = subprocess.run([*argv, "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return None
    return f"this kernel refuses user namespaces: {done.stderr.strip() or done.returncode}"


def _tree(pid: int) -> list[int]:
    """A process and all its descendants, ancestors first."""
    found = [pid]
    for known in found:
        try:
            tasks = list(Path(f"/proc/{known}/task").iterdir())
            for task in tasks:
                children = (task / "children").read_text(encoding="ascii").split()
                found.extend(int(child) for child in children)
        except OSError:
            continue
    return found


def _signal(pid: int, number: signal.Signals) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
