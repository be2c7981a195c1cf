"""The Docker engine whose containers are kind's nodes, through the program `docker`.

The program itself chooses the engine (`DOCKER_HOST`, contexts); the only assumption is that it runs
Linux containers. What concerns kind itself is in `kind`.
"""

from __future__ import annotations

import json
import shutil
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from localcluster.commands import CommandError, answer
from localcluster.errors import LocalError
from pdserve.terms.json import JsonMap

_QUICK_SECONDS = 30.0
_LONG_SECONDS = 600.0
_LABEL_CLUSTER = "io.x-k8s.kind.cluster"
_LABEL_ROLE = "io.x-k8s.kind.role"


@dataclass(frozen=True, slots=True)
class NodeContainer:
    """A container that is a node of a kind cluster. `role` is kind's: control-plane, worker."""

    name: str
    role: str
    running: bool


def check() -> str:
    """Version of the engine.

    Raises:
        LocalError: there is no `docker` program, or no engine answers it; says what to do.
    """
    if shutil.which("docker") is None:
        raise LocalError(
            "kind nodes are containers, and there is no `docker` program in PATH: install Docker, "
            "or use process nodes (--nodes process), which need no containers"
        )
    try:
        return answer(
            ["docker", "version", "--format", "{{.Server.Version}}"], seconds=_QUICK_SECONDS
        ).strip()
    except CommandError as error:
        raise LocalError(
            f"no Docker engine answers: {error.said or error}\n"
            "Start it, or point DOCKER_HOST at one that runs; process nodes (--nodes process) "
            "need none."
        ) from error


def image_ids(references: Iterable[str]) -> dict[str, str]:
    """Id of each image that the engine has; the others are left out."""
    found: dict[str, str] = {}
    for reference in references:
        try:
            argv = ["docker", "image", "inspect", "--format", "{{.Id}}", reference]
            found[reference] = answer(argv, seconds=_QUICK_SECONDS).strip()
        except CommandError as error:
            if "no such image" not in error.said.lower():
                raise
    return found


def node_containers(cluster: str) -> dict[str, NodeContainer]:
    """The containers of one kind cluster by name, also those that do not run."""
    template = f'{{{{.Names}}}}\t{{{{.Label "{_LABEL_ROLE}"}}}}\t{{{{.State}}}}'
    listed = answer(
        ["docker", "ps", "--all", "--filter", f"label={_LABEL_CLUSTER}={cluster}",
         "--format", template],
        seconds=_QUICK_SECONDS,
    )  # fmt: skip
    found = {}
    for line in listed.splitlines():
        name, role, state = line.split("\t")
        found[name] = NodeContainer(name, role, state == "running")
    return dict(sorted(found.items()))


def running_nodes() -> dict[str, list[str]]:
    """Names of the nodes of every kind cluster that runs, also of those made elsewhere."""
    template = f'{{{{.Label "{_LABEL_CLUSTER}"}}}}\t{{{{.Names}}}}'
    listed = answer(
        ["docker", "ps", "--filter", f"label={_LABEL_CLUSTER}", "--format", template],
        seconds=_QUICK_SECONDS,
    )
    found: dict[str, list[str]] = {}
    for line in sorted(listed.splitlines()):
        cluster, name = line.split("\t")
        found.setdefault(cluster, []).append(name)
    return found


def start(containers: Sequence[str]) -> None:
    """Start containers that were stopped."""
    answer(["docker", "start", *containers], seconds=_QUICK_SECONDS * 2)


def save(images: Sequence[str], archive: Path) -> None:
    """Write images into one archive; layers that they share are in it once."""
    answer(["docker", "save", "--output", str(archive), *images], seconds=_LONG_SECONDS)


def import_images(container: str, archive: Path) -> None:
    """Put the images of an archive into a node's image store, as `kind load` does, but `--local`.

    That is containerd's own import in the client. What `kind load` uses since containerd 2 (the
    transfer service) does the same in twice the time.
    """
    config = tomllib.loads(
        answer(
            ["docker", "exec", container, "containerd", "config", "dump"], seconds=_QUICK_SECONDS
        )
    )
    argv = ["docker", "exec", "--interactive", container, "ctr", "--namespace=k8s.io", "images"]
    argv += ["import", "--local", "--all-platforms", "--digests"]
    argv += [f"--snapshotter={_snapshotter(config)}", "-"]
    with archive.open("rb") as content:
        answer(argv, seconds=_LONG_SECONDS, stdin=content)


def _snapshotter(config: JsonMap) -> str:
    """Where the node's container runtime looks for unpacked images."""
    plugins = config.get("plugins", {})
    images = plugins.get("io.containerd.cri.v1.images", {})
    before_2 = plugins.get("io.containerd.grpc.v1.cri", {}).get("containerd", {})
    return str(images.get("snapshotter") or before_2.get("snapshotter") or "overlayfs")


def images_on_node(container: str) -> Mapping[str, str]:
    """Tag -> image id of everything in a node's image store."""
    argv = ["docker", "exec", container, "crictl", "images", "--output", "json"]
    document = json.loads(answer(argv, seconds=_QUICK_SECONDS))
    return {
        str(tag): str(image["id"])
        for image in document.get("images") or ()
        for tag in image.get("repoTags") or ()
    }
