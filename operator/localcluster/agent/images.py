"""Which program stands for which container image on a process node.

An image can be used only if this machine has its program. Any other cannot be pulled, and the pod's
status says so, as on a node that cannot reach the registry. The program of a real image listens on
all addresses of its pod; pods here share the machine, so each program listens on its pod's address.

Tags have no meaning unless `PDSERVE_RELEASES` names a directory of checkouts: `pdserve/engine:v1`
then runs the programs of `DIRECTORY/v1`, if there is one. So several versions run side by side.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pdserve.models.catalog import IN_CONTAINERS
from pdserve.models.store import models_folder

Entrypoint = tuple[str, ...]

OWN_IMAGES: Mapping[str, Entrypoint] = {
    "pdserve/operator": (sys.executable, "-m", "pdserve.controllers"),
    "pdserve/gateway": (sys.executable, "-m", "pdserve.gateway"),
    "pdserve/engine": (sys.executable, "-m", "pdserve.refengine"),
}
ENGINE_IMAGE = "pdserve/engine"
PYTHON = "/opt/pdserve/bin/python"
"""Where our images have Python, for pods whose command names it."""
PROMETHEUS_IMAGE = "prom/prometheus"
PROMETHEUS_PORT = 9090
ENV_RELEASES = "PDSERVE_RELEASES"


@dataclass(frozen=True, slots=True)
class Program:
    """What an image holds and says of itself."""

    entrypoint: Entrypoint
    env: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Path in the image -> directory of this machine that stands for it, which may not exist."""
    programs: Mapping[str, str] = field(default_factory=dict)
    """Path in the image -> program of this machine that stands for it."""


class ImageError(Exception):
    """No program stands for this image; the message is for the pod's status."""


def repository(image: str) -> str:
    """`registry.example:5000/pdserve/engine:1.2@sha256:...` -> `pdserve/engine`."""
    name = image.partition("@")[0]
    head, slash, last = name.rpartition("/")
    name = head + slash + last.partition(":")[0]
    first, slash, rest = name.partition("/")
    is_registry = slash and ("." in first or ":" in first or first == "localhost")
    return rest if is_registry else name


def full_name(image: str) -> str:
    """As a container runtime writes it: `pdserve/engine:1` -> `docker.io/pdserve/engine:1`."""
    first, slash, _ = image.partition("/")
    if not slash:
        image = f"docker.io/library/{image}"
    elif not ("." in first or ":" in first or first == "localhost"):
        image = f"docker.io/{image}"
    tagged = ":" in image.rpartition("/")[2] or "@" in image
    return image if tagged else f"{image}:latest"


def program(image: str, prometheus: Callable[[], Path], pod_ip: str) -> Program:
    """What stands for an image in the pod with this address.

    `prometheus` finds that program when it is asked for.

    Raises:
        ImageError: an image this machine has no program for.
    """
    name = repository(image)
    # A mirror keeps the last two parts of the name: mirror.example/team/pdserve/engine.
    short = "/".join(name.split("/")[-2:])
    if short in OWN_IMAGES:
        env = {"PDSERVE_BIND": pod_ip, **_release_env(image)}
        folders = {IN_CONTAINERS: models_folder()} if short == ENGINE_IMAGE else {}
        return Program(OWN_IMAGES[short], env, folders, {PYTHON: sys.executable})
    if short == PROMETHEUS_IMAGE:
        listen = f"--web.listen-address={pod_ip}:{PROMETHEUS_PORT}"
        return Program((str(prometheus()), listen))
    known = ", ".join((*OWN_IMAGES, PROMETHEUS_IMAGE))
    raise ImageError(f'image "{image}": a process node has no programs but those of {known}')


def releases() -> dict[str, Path]:
    """Tags that have a checkout of their own -> its directory.

    Links are followed now: as an image, a running container keeps what it was started from.
    """
    directory = os.environ.get(ENV_RELEASES)
    if not directory or not Path(directory).is_dir():
        return {}
    found = {path.name: path.resolve() for path in Path(directory).iterdir()}
    return {tag: path for tag, path in found.items() if (path / "operator").is_dir()}


def _release_env(image: str) -> dict[str, str]:
    """What makes Python run another checkout's programs; `{}` for this one's."""
    tag = image.partition("@")[0].rpartition("/")[2].partition(":")[2]
    checkout = releases().get(tag)
    return {} if checkout is None else {"PYTHONPATH": str(checkout / "operator")}
