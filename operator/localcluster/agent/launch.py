# pathlib would double the start-up time of every container:
# ruff: noqa: PTH102, PTH103, PTH110, PTH112, PTH113, PTH115, PTH118, PTH120, PTH123, PTH211
"""Makes a container's namespaces and view of the machine, then becomes its program.

`sandbox` runs it as `python -I -S launch.py SPEC`. It uses the standard library only and imports no
other module of ours, so that it starts in milliseconds. It needs no root where users may make
namespaces.

1. Enter new user, mount and process-id namespaces.
2. Start the container's first process as a *sibling* (CLONE_PARENT, as runc does): then the agent
   is its parent and gets its exit status. When that process ends, the kernel ends all others in
   the namespace. Report its process id and exit; the sibling does the rest.
3. If there are mounts: make a root of bind mounts that looks like the machine's, and put the
   mounts in. A mount point that the machine lacks must not be created on it: cover the nearest
   existing directory by a small tmpfs that shows the same entries, and make the mount point there.
4. Mount a /proc of its own process ids, where the kernel permits.
5. Report the start, or why it is not possible, and become the program.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import signal
import sys
from typing import Any, NoReturn

_CLONE_PARENT, _CLONE_NEWNS = 0x8000, 0x20000
_CLONE_NEWUSER, _CLONE_NEWPID = 0x10000000, 0x20000000
_SYS_CLONE = {"x86_64": 56, "aarch64": 220}
_PR_SET_PDEATHSIG = 1
_MS_RDONLY, _MS_REMOUNT, _MS_BIND, _MS_REC, _MS_PRIVATE = 1, 32, 4096, 16384, 1 << 18
# nosuid, nodev, noexec, noatime, nodiratime: what a less privileged remount must keep.
_MS_LOCKED = 2 | 4 | 8 | 1024 | 2048
_LIBC = ctypes.CDLL(None, use_errno=True)

EXIT_CANNOT_RUN = 127
STARTED, CANNOT_START = b"1", b"0"
"""First byte of the file that says how the start went; after the second comes the reason."""

_Placed = tuple[str, str, bool]
"""Target with links resolved, source, read-only."""


def main(spec_path: str) -> NoReturn:
    """Do the steps above for the spec at `spec_path`; never returns."""
    with open(spec_path, encoding="utf-8") as file:
        spec = json.load(file)
    _new_namespaces()
    pid = _clone_sibling()
    if pid:
        with open(spec["pid_file"], "w", encoding="utf-8") as file:
            file.write(str(pid))
        os._exit(0)
    _die_with(spec["agent"])
    os.setsid()
    started = os.open(spec["started_file"], os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC)
    if spec["mounts"]:
        root = Root(spec["root"])
        root.fill(spec["mounts"])
        root.own_proc()
        root.enter()
    else:
        _try_mount(b"proc", b"/proc", b"proc", 0)
    problem = cannot_run(spec)
    os.write(started, STARTED if problem is None else CANNOT_START + problem.encode())
    if problem is not None:
        os._exit(EXIT_CANNOT_RUN)
    execute(spec)


def _new_namespaces() -> None:
    uid, gid = os.getuid(), os.getgid()
    _check(_LIBC.unshare(_CLONE_NEWUSER | _CLONE_NEWNS | _CLONE_NEWPID), "unshare")
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
            file.write(text)
    _check(_LIBC.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None), "make mounts private")


def _clone_sibling() -> int:
    """Fork, but as a child of this process's parent; the first process of the new namespace.

    There is one thread here, so the system call alone is enough of a fork.
    """
    number = _SYS_CLONE.get(platform.machine())
    if number is None:
        raise OSError(0, f"clone: unknown machine {platform.machine()}")
    return _check(_LIBC.syscall(number, _CLONE_PARENT | signal.SIGCHLD, 0, 0, 0, 0), "clone")


def _die_with(agent: int) -> None:
    """Be killed with the agent; it may be dead already, and then nothing else would tell."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    # /proc is still the machine's here; getppid() would answer 0 across namespaces.
    with open("/proc/self/status", encoding="ascii") as file:
        parents = [line.split()[1] for line in file if line.startswith("PPid:")]
    if parents != [str(agent)]:
        os._exit(EXIT_CANNOT_RUN)


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def cannot_run(spec: dict[str, Any]) -> str | None:
    """Why the program cannot be run, in a container runtime's words; None when it can."""
    name = spec["argv"][0]
    if "/" in name:
        found = [name]
    else:
        folders = spec["env"].get("PATH", os.defpath).split(os.pathsep)
        found = [p for p in (os.path.join(f, name) for f in folders) if os.path.isfile(p)]
    if not found:
        return f'exec: "{name}": executable file not found in $PATH'
    if not os.path.exists(found[0]):
        return f'exec: "{name}": stat {found[0]}: no such file or directory'
    if not any(os.access(p, os.X_OK) and not os.path.isdir(p) for p in found):
        return f'exec: "{name}": permission denied'
    return None


def execute(spec: dict[str, Any]) -> NoReturn:
    """Become the program; a program that cannot be run ends as a shell would end it."""
    argv, env = spec["argv"], spec["env"]
    try:
        os.chdir(spec["workdir"])
        os.execvpe(argv[0], argv, env)  # noqa: S606 - to be that program is its purpose
    except OSError as error:
        print(f"cannot run {argv[0]!r}: {error.strerror}: {error.filename}", file=sys.stderr)  # noqa: T201 - goes to the container's log
        os._exit(EXIT_CANNOT_RUN)


class Root:
    """A new root directory under construction at `path` (an empty directory of the machine)."""

    def __init__(self, path: str) -> None:
        self._path = path

    def fill(self, mounts: list[dict[str, Any]]) -> None:
        """Show the machine's entries, and each mount's `source` at its `target`."""
        placed = [(os.path.realpath(m["target"]), m["source"], m["read_only"]) for m in mounts]
        # Outer before inner, so that a volume may be mounted inside another.
        placed.sort(key=_depth)
        outer: list[str] = []
        for target, _, _ in placed:
            if not any(_inside(target, other) for other in outer):
                outer.append(target)
        self._make_points([m for m in placed if m[0] in outer])
        for target, source, read_only in placed:
            if target not in outer:
                self._make_inner_point(target, source, placed)
            self._bind(source, target, read_only)

    def own_proc(self) -> None:
        """A /proc of this namespace's processes; where refused, the machine's stays."""
        _try_mount(b"proc", os.fsencode(self._path + "/proc"), b"proc", 0)

    def enter(self) -> None:
        """Make it the root of this process."""
        os.chroot(self._path)
        os.chdir("/")

    def _make_points(self, placed: list[_Placed]) -> None:
        missing = [(t, source) for t, source, _ in placed if not os.path.lexists(t)]
        # An outer directory first: covering it later would hide what was made inside.
        covers = {"/"} | {_existing(target) for target, _ in missing}
        for directory in sorted(covers, key=lambda path: (len(path.split("/")), path)):
            self._cover(directory)
        for target, source in missing:
            _make(self._path + target, source)

    def _make_inner_point(self, target: str, source: str, placed: list[_Placed]) -> None:
        """In the volume around it, by its own directory: the mount of it may be read-only."""
        around = [p for p in placed if p[0] != target and _inside(target, p[0])]
        outer, directory, _ = max(around, key=_depth)
        _make(directory + target[len(outer) :], source)

    def _bind(self, source: str, target: str, read_only: bool) -> None:
        point = self._path + target
        _mount(source, point, None, _MS_BIND | _MS_REC)
        if read_only:
            locked = os.statvfs(point).f_flag & _MS_LOCKED
            _mount(source, point, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY | locked)

    def _cover(self, directory: str) -> None:
        """Put a tmpfs over `directory` that shows the machine's entries of it."""
        covered = self._path + directory.rstrip("/")
        _mount("tmpfs", covered, "tmpfs", 0)
        for entry in os.scandir(directory):
            shown = f"{covered}/{entry.name}"
            try:
                _show(entry, shown)
            except FileNotFoundError:
                continue  # it went meanwhile; an empty place of its name may remain


def _show(entry: os.DirEntry[str], shown: str) -> None:
    if entry.is_symlink():
        os.symlink(os.readlink(entry.path), shown)
        return
    if entry.is_dir():
        os.mkdir(shown)
    else:
        open(shown, "a", encoding="utf-8").close()
    _mount(entry.path, shown, None, _MS_BIND | _MS_REC)


def _make(point: str, source: str) -> None:
    """An empty directory or file to mount `source` on, unless there is one."""
    if os.path.lexists(point):
        return
    if os.path.isdir(source):
        os.makedirs(point)
        return
    os.makedirs(os.path.dirname(point), exist_ok=True)
    open(point, "a", encoding="utf-8").close()


def _depth(mount: _Placed) -> tuple[int, str]:
    return mount[0].count("/"), mount[0]


def _existing(target: str) -> str:
    """The nearest directory above `target` that the machine has."""
    path = os.path.dirname(target)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    return path


def _inside(path: str, outer: str) -> bool:
    return path == outer or path.startswith(outer.rstrip("/") + "/")


def _mount(source: str, target: str, fstype: str | None, flags: int) -> None:
    kind = None if fstype is None else fstype.encode()
    done = _LIBC.mount(os.fsencode(source), os.fsencode(target), kind, flags, None)
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {source}: {os.strerror(number)}", target)


def _try_mount(source: bytes, target: bytes, fstype: bytes, flags: int) -> bool:
    return bool(_LIBC.mount(source, target, fstype, flags, None) == 0)


if __name__ == "__main__":
    main(sys.argv[1])
