"""Which directories and files of this machine a container sees, and at which paths.

These are its volumes, what its image holds, and what every container gets besides. `volumes` fills
volumes, `sandbox` mounts all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from localcluster.agent.environment import expand
from localcluster.agent.sandbox import Mount
from localcluster.agent.volumes import host_path, volumes_of
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap

DEFAULT_TERMINATION_LOG = "/dev/termination-log"
_LIVE = ("configMap", "secret", "downwardAPI", "projected")


@dataclass(frozen=True, slots=True)
class ContainerMounts:
    """All of one run. What the program writes to `termination_log` is its last word."""

    mounts: tuple[Mount, ...]
    termination_log: Path
    workdir: str


def container_mounts(
    container: JsonMap,
    pod: Object,
    directory: Path,
    root: Path,
    env: Mapping[str, str],
    folders: Mapping[str, Path] | None = None,
) -> ContainerMounts:
    """Make ready what `container` sees; its volumes are below `root`, the rest in `directory`.

    `folders` are those of its image: path in it -> directory of this machine.
    """
    volumes = {v["name"]: v for v in volumes_of(pod)}
    mounts = [
        _mount(mount, volumes[mount["name"]], root, env)
        for mount in container.get("volumeMounts") or ()
    ]
    mounts += [
        Mount(source, target, read_only=True)
        for target, source in (folders or {}).items()
        if source.is_dir() and not any(_overlap(target, mount.target) for mount in mounts)
    ]
    directory.mkdir(parents=True, exist_ok=True)
    last_word = directory / "termination-log"
    last_word.write_bytes(b"")
    last_word.chmod(0o666)
    shown_at = container.get("terminationMessagePath") or DEFAULT_TERMINATION_LOG
    workdir = str(container.get("workingDir") or "/")
    mounts += _missing(workdir, mounts, directory / "workdir")
    mounts.append(Mount(last_word, shown_at, read_only=False))
    return ContainerMounts(tuple(mounts), last_word, workdir)


def _mount(mount: JsonMap, volume: JsonMap, root: Path, env: Mapping[str, str]) -> Mount:
    source = host_path(volume, root)
    below = mount.get("subPath") or expand(mount.get("subPathExpr") or "", env)
    if below:
        source = source / below
        if "emptyDir" in volume or "hostPath" in volume:
            _make_below(host_path(volume, root), below)
    live = any(kind in volume for kind in _LIVE)
    return Mount(source, mount["mountPath"], bool(mount.get("readOnly")) or live)


def _make_below(volume: Path, below: str) -> None:
    """Directories that are missing, with the permissions of the volume, as a kubelet makes them."""
    mode, path = volume.stat().st_mode & 0o777, volume
    for part in PurePath(below).parts:
        path = path / part
        if not path.exists():
            path.mkdir()
            path.chmod(mode)


def _overlap(path: str, other: str) -> bool:
    """Whether one is the other, or inside it.

    A volume hides what the image has there; one inside would need a mount point, which must not be
    made in a directory of this machine.
    """
    first, second = PurePath(path), PurePath(other)
    return first.is_relative_to(second) or second.is_relative_to(first)


def _missing(workdir: str, mounts: Sequence[Mount], spare: Path) -> list[Mount]:
    """What gives a container its working directory where nothing else does, as a runtime would."""
    for mount in sorted(mounts, key=lambda m: len(m.target), reverse=True):
        if PurePath(workdir).is_relative_to(mount.target):
            if mount.source.is_dir() and not mount.read_only:
                inside = mount.source / PurePath(workdir).relative_to(mount.target)
                inside.mkdir(parents=True, exist_ok=True)
            return []
    if Path(workdir).exists():
        return []
    spare.mkdir(parents=True, exist_ok=True)
    return [Mount(spare, workdir, read_only=False)]
