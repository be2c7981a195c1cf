"""Which images a kind cluster's workers lack, and getting them there.

Nodes have an image store of their own, filled from the engine's by `kind load docker-image`: one
archive for all nodes. Only what a node lacks, or has under another id, is loaded.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pdserve import __version__
from pdserve.local import docker
from pdserve.local.agent.images import full_name
from pdserve.local.errors import Progress

OWN_IMAGES = tuple(f"pdserve/{part}:{__version__}" for part in ("operator", "gateway", "engine"))
PROMETHEUS_IMAGE = "prom/prometheus:v3.15.0"
DEFAULT_IMAGES = (*OWN_IMAGES, PROMETHEUS_IMAGE)

Store = Mapping[str, str]
"""Full image name -> id."""


def load_images(
    cluster: str,
    nodes: Sequence[str],
    images: Sequence[str],
    *,
    program: Path,
    record: Path,
    run: Callable[[Sequence[str]], None],
    progress: Progress,
) -> None:
    """Load those of `images` that the engine has into `nodes`; says which it has not.

    `record` is a file that remembers what was loaded, `run` carries out the kind `program`.

    Raises:
        LocalError: the engine or a node does not answer, or loading failed.
    """
    ids = docker.image_ids(images)
    absent = [image for image in images if image not in ids]
    if absent:
        progress(f"the engine has no {', '.join(absent)}, so the nodes get none: {_remedy(absent)}")
    with ThreadPoolExecutor(max_workers=8) as pool:
        stores = dict(zip(nodes, pool.map(docker.images_on_node, nodes), strict=True))
    missing = lacking(ids, stores, _recorded(record))
    if missing:
        wanted = [image for image in ids if any(image in images for images in missing.values())]
        progress(f"loading into {len(missing)} nodes: {', '.join(wanted)}")
        argv = [str(program), "load", "docker-image", "--name", cluster]
        run([*argv, "--nodes", ",".join(missing), *wanted])
    record.write_text(json.dumps(dict.fromkeys(nodes, ids), indent=1), encoding="utf-8")


def lacking(
    ids: Mapping[str, str],
    stores: Mapping[str, Store],
    recorded: Mapping[str, Mapping[str, str]],
) -> dict[str, list[str]]:
    """Node -> images to load. Pure.

    A node has an image when it has the name with the same id. Engines with a containerd store give
    other ids than nodes do; there it counts that this id was loaded and the name is still there.
    """
    result = {}
    for node, store in stores.items():
        known = recorded.get(node, {})
        absent = [
            image
            for image, identity in ids.items()
            if store.get(full_name(image)) != identity
            and not (full_name(image) in store and known.get(image) == identity)
        ]
        if absent:
            result[node] = absent
    return result


def _recorded(record: Path) -> dict[str, dict[str, str]]:
    if not record.is_file():
        return {}
    document: dict[str, dict[str, str]] = json.loads(record.read_text(encoding="utf-8"))
    return document


def _remedy(absent: Sequence[str]) -> str:
    remedies = []
    if any(image.startswith("pdserve/") for image in absent):
        remedies.append("`make images` builds pdserve's own")
    if others := [image for image in absent if not image.startswith("pdserve/")]:
        remedies.append(f"nodes pull {', '.join(others)} where they reach a registry")
    return "; ".join(remedies)
