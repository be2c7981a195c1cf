"""Starts a container's program with its own mounts and process ids, and gives access to it later.

`launch` does the work inside. No root is needed where the kernel lets users make namespaces. The
process-id namespace also guarantees that every process of a container ends with it. Where
namespaces are not allowed, a container is a plain process: mount paths in its command line and
environment are replaced by the directories themselves, programs that look for a service account in
its fixed place get a kubeconfig instead, and `Sandbox.why_not` says why.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster import processes
from localcluster.agent.images import releases
from localcluster.agent.launch import CANNOT_START
from localcluster.errors import log_tail
from localcluster.paths import cache_dir, checkout

SERVICE_ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"

_LAUNCH = Path(__file__).with_name("launch.py")
_START_POLL_SECONDS = 0.003
_LOG_LINES = 3
_PID, _STARTED = "pid", "started"


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
    termination_log: Path | None = None
    """What the program writes there is its last word, for its status; None: nowhere to write."""


class RunningContainer:
    """A started container: wait for it, signal it, run something inside it.

    `launcher` is `launch` on its way, which names the container's own process when it is done, or
    without namespaces the container's process itself.
    """

    def __init__(
        self, launcher: subprocess.Popen[bytes], launch: Launch, *, namespaced: bool
    ) -> None:
        self._launcher = launcher
        self._launch = launch
        self._namespaced = namespaced
        self._pid: int | None = None
        self._killed = False
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        _when_ended(launcher.pid, self._launcher_ended)
        if not namespaced:
            self._pid = launcher.pid

    def _launcher_ended(self) -> None:
        code = self._launcher.wait()
        if not self._namespaced:
            processes.kill_group(self._launcher.pid)
            self._ended.set_result(code)
        elif code != 0:
            self._ended.set_result(code)
        else:
            self._pid = int((self._launch.directory / _PID).read_text(encoding="ascii"))
            _when_ended(self._pid, self._container_ended)
            if self._killed:
                self.kill()

    def _container_ended(self) -> None:
        assert self._pid is not None  # noqa: S101 - set before this was registered
        _, status = os.waitpid(self._pid, 0)
        self._ended.set_result(os.waitstatus_to_exitcode(status))

    async def wait(self) -> int:
        """Exit code, 0 to 255; negative: ended by that signal."""
        return await asyncio.shield(self._ended)

    async def not_started(self) -> str | None:
        """Wait until it is the program, with a `pid`: None then; the reason when it ended before.

        On a busy machine the program may run before its launcher, which has nothing left to do
        but say so, is seen to have ended.
        """
        if not self._namespaced:
            return None
        marker = self._launch.directory / _STARTED
        while self._pid is None or not (marker.exists() and marker.stat().st_size):
            if self._ended.done():
                return log_tail(self._launch.log, _LOG_LINES)
            await asyncio.sleep(_START_POLL_SECONDS)
        said = marker.read_bytes()
        if said.startswith(CANNOT_START):
            await self.wait()
            return said.removeprefix(CANNOT_START).decode("utf-8", "replace")
        return None

    @property
    def pid(self) -> int | None:
        """The program's process id on this machine; None while it is still being started."""
        return self._pid

    def terminate(self) -> None:
        """SIGTERM to the program; one that is not running yet is killed."""
        if self._pid is None:
            self.kill()
        elif not self._ended.done():
            _signal(self._pid, signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL to everything in the container, as soon as its first process is known.

        Its launcher is left to end by itself: killed at the wrong moment it would leave behind a
        container without a record.
        """
        self._killed = True
        if self._ended.done() or self._pid is None:
            return
        if self._namespaced:
            # The first process of its namespace: the kernel ends all others before it reports.
            _signal(self._pid, signal.SIGKILL)
        else:
            for pid in _tree(self._pid):
                _signal(pid, signal.SIGKILL)

    def freeze(self, frozen: bool) -> None:
        """Stop (or continue) every process of the container, which none of them can notice."""
        if self._pid is not None and not self._ended.done():
            for pid in _tree(self._pid):
                _signal(pid, signal.SIGSTOP if frozen else signal.SIGCONT)

    def inside(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs `argv` in this container's namespaces."""
        if not self._namespaced:
            return list(argv)
        enter = ["nsenter", "--target", str(self.pid), "--user", "--preserve-credentials"]
        return [*enter, "--mount", "--pid", "--root", "--wd", "--", *argv]

    @property
    def log(self) -> Path:
        """Where its output goes."""
        return self._launch.log

    @property
    def env(self) -> Mapping[str, str]:
        """The container's environment, for what runs inside it."""
        return self._launch.env


class Sandbox:
    """Starts containers. `why_not` is None where namespaces work, else the reason they do not."""

    def __init__(self) -> None:
        self.why_not: str | None = None

    async def check(self, scratch: Path) -> None:
        """Find out, by starting a container in `scratch`, whether this machine allows them."""
        if shutil.which("nsenter") is None:
            self.why_not = "no `nsenter` (util-linux) on this machine"
            return
        source, log = scratch / "source", scratch / "log"
        source.mkdir(parents=True, exist_ok=True)
        mount = Mount(source, "/pdserve-check/mount", read_only=True)
        argv = ["test", "-d", mount.target]
        env = {"PATH": os.environ.get("PATH", os.defpath)}
        code = await self.start(Launch(argv, env, "/", [mount], scratch / "c", log)).wait()
        if code != 0:
            said = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            self.why_not = f"this machine refuses them: {said[-1] if said else f'exit {code}'}"

    def start(self, launch: Launch) -> RunningContainer:
        """Start a container.

        Raises:
            OSError: the machine cannot start any process.
        """
        shutil.rmtree(launch.directory, ignore_errors=True)
        launch.directory.mkdir(parents=True)
        if self.why_not is not None:
            return self._start_plain(launch)
        root = launch.directory / "root"
        root.mkdir()
        spec = launch.directory / "spec.json"
        document = {
            "argv": list(launch.argv),
            "env": dict(launch.env),
            "workdir": launch.workdir,
            "root": str(root),
            "pid_file": str(launch.directory / _PID),
            "started_file": str(launch.directory / _STARTED),
            "agent": os.getpid(),
            "mounts": [
                {"source": str(m.source), "target": m.target, "read_only": m.read_only}
                for m in (*launch.mounts, *uncovered(launch.mounts, _programs()))
            ],
        }
        spec.touch(mode=0o600)
        spec.write_text(json.dumps(document), encoding="utf-8")
        argv = [sys.executable, "-I", "-S", str(_LAUNCH), str(spec)]
        process = processes.spawn(argv, log=launch.log, cwd=Path("/"))
        return RunningContainer(process, launch, namespaced=True)

    def _start_plain(self, launch: Launch) -> RunningContainer:
        env = {name: without_mounts(v, launch.mounts) for name, v in launch.env.items()}
        account = [m.source for m in launch.mounts if m.target == SERVICE_ACCOUNT]
        if account and "KUBECONFIG" not in env:
            env["KUBECONFIG"] = str(_account_kubeconfig(launch, account[0]))
        argv = [without_mounts(part, launch.mounts) for part in launch.argv]
        workdir = Path(without_mounts(launch.workdir, launch.mounts))
        process = processes.spawn(argv, log=launch.log, cwd=workdir, env=env)
        return RunningContainer(process, launch, namespaced=False)


def _account_kubeconfig(launch: Launch, account: Path) -> Path:
    server = "https://{KUBERNETES_SERVICE_HOST}:{KUBERNETES_SERVICE_PORT}".format(**launch.env)
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": "local",
                "cluster": {"server": server, "certificate-authority": str(account / "ca.crt")},
            }
        ],
        "users": [{"name": "pod", "user": {"tokenFile": str(account / "token")}}],
        "contexts": [{"name": "local", "context": {"cluster": "local", "user": "pod"}}],
        "current-context": "local",
    }
    path = launch.directory / "kubeconfig"
    # JSON is YAML.
    path.write_text(json.dumps(document), encoding="utf-8")
    return path


def _programs() -> tuple[Path, ...]:
    """Where the programs that images name lie: an image has them whatever is mounted."""
    places = {Path(sys.prefix), Path(sys.base_prefix), Path(__file__).parents[2], cache_dir()}
    if (root := checkout()) is not None:
        places.add(root)
    places.update(releases().values())
    return tuple(sorted(p for p in places if p.is_dir()))


def uncovered(mounts: Sequence[Mount], places: Sequence[Path]) -> list[Mount]:
    """Mounts that show those of `places` again which `mounts` cover (a checkout in /tmp, say)."""
    shown: list[Mount] = []
    for place in sorted(places):
        covered = any(place.is_relative_to(os.path.realpath(m.target)) for m in mounts)
        if covered and not any(place.is_relative_to(m.target) for m in shown):
            shown.append(Mount(place, str(place), read_only=True))
    return shown


def without_mounts(text: str, mounts: Sequence[Mount]) -> str:
    """`text` with every mount's target, at a path's start, replaced by its source."""
    for mount in sorted(mounts, key=lambda m: len(m.target), reverse=True):
        target = mount.target.rstrip("/")
        head, found, tail = text.partition(target)
        starts_a_path = not head or head[-1] in "=:, "
        if found and starts_a_path and (not tail or tail[0] in "/:, "):
            return f"{head}{mount.source}{tail}"
    return text


def _when_ended(pid: int, call: Callable[[], None]) -> None:
    """Call once the child `pid` has ended and can be waited for."""
    loop = asyncio.get_running_loop()
    descriptor = os.pidfd_open(pid)

    def ended() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        call()

    loop.add_reader(descriptor, ended)


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
