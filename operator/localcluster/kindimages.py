"""Which images a kind cluster's workers lack, and getting them there.

Nodes have an image store of their own, filled from the engine's: one archive for all nodes. Only
what a node lacks, or has under another id, is loaded.
"""

from __future__ import annotations

import json
import tempfile
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from localcluster import docker
from localcluster.agent.images import full_name
from localcluster.commands import CommandError
from localcluster.errors import LocalError, Progress
from pdserve import __version__

OWN_IMAGES = tuple(f"pdserve/{part}:{__version__}" for part in ("operator", "gateway", "engine"))
PROMETHEUS_IMAGE = "prom/prometheus:v3.15.0"
DEFAULT_IMAGES = (*OWN_IMAGES, PROMETHEUS_IMAGE)


_ATTEMPTS = 2
"""A busy engine may fail to enter a node that is fine a moment later."""

Store = Mapping[str, str]
"""Full image name -> id."""


def load_images(
    nodes: Sequence[str],
    images: Sequence[str],
    *,
    directory: Path,
    kind_load: Callable[[Path, str], None],
    progress: Progress,
) -> None:
    """Load those of `images` that the engine has into `nodes`; says which it has not.

    `directory` is the cluster's: it remembers there what was loaded. `kind_load` puts an archive
    into a node by the kind program, for nodes where the quicker way does not work.

    Raises:
        LocalError: the engine or a node does not answer, or loading failed.
    """
    ids = docker.image_ids(images)
    absent = [image for image in images if image not in ids]
    if absent:
        progress(f"the engine has no {', '.join(absent)}, so the nodes get none: {_remedy(absent)}")
    record = directory / "images.json"
    with ThreadPoolExecutor(max_workers=8) as pool:
        stores = dict(zip(nodes, pool.map(docker.images_on_node, nodes), strict=True))
    missing = lacking(ids, stores, _recorded(record))
    wanted = [image for image in ids if any(image in images for images in missing.values())]
    if wanted:
        began = time.monotonic()
        progress(f"loading into {len(missing)} nodes: {', '.join(wanted)}")
        with tempfile.TemporaryDirectory(prefix="images-", dir=directory) as scratch:
            archive = Path(scratch) / "images.tar"
            docker.save(wanted, archive)
            _load_all(list(missing), archive, kind_load, progress)
        progress(f"images loaded in {time.monotonic() - began:.0f} s")
    record.write_text(json.dumps(dict.fromkeys(nodes, ids), indent=1), encoding="utf-8")


def _load_all(
    nodes: Sequence[str],
    archive: Path,
    kind_load: Callable[[Path, str], None],
    progress: Progress,
) -> None:
    def load(node: str) -> None:
        for _ in range(_ATTEMPTS):
            try:
                docker.import_images(node, archive)
            except (CommandError, tomllib.TOMLDecodeError) as error:
                progress(f"{node}: {error}")
            else:
                return
        kind_load(archive, node)

    with ThreadPoolExecutor(max_workers=4) as pool:
        loads = {pool.submit(load, node): node for node in nodes}
        for count, done in enumerate(as_completed(loads), start=1):
            done.result()
            progress(f"{loads[done]} has the images ({count} of {len(nodes)})")


def built_images(path: Path) -> tuple[str, ...]:
    """The images that `make images` says (in build/images.json) it has made.

    Raises:
        LocalError: no such file, or not of that form.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        return tuple(f"{image['name']}:{image['tag']}" for image in document["images"])
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}: `make images` writes it") from error
    except (ValueError, LookupError, TypeError) as error:
        raise LocalError(f"{path}: not what `make images` writes: {error!r}") from error


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
