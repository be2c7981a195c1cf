"""Where the weights of an instance come from: its volume, mounts and download. Pure.

A claim and an image are mounted as they are. A URI is downloaded by an init container of pdserve's
own (`pdserve.downloader`) into

    <volume>/files                 an emptyDir: each pod downloads for itself
    <cache>/NAMESPACE/KEY/files    a directory of the node, where an administrator names one: the
                                   first pod of a node downloads, others wait for it and use it

KEY stands for everything that decides what is there: URL, SHA-256, kind of content, name of the
Secret. A pod is given the directory of its own namespace and key alone (docs/decisions/043).
Neighbours: `pods` puts these parts into the pod, `pods_template` refuses templates that reach for
the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pdserve.api import ModelSource, ModelUri
from pdserve.engines.pod_parts import PodSettings, text_flag
from pdserve.engines.pod_profile import SECRET_VOLUME_FIELD, Finding, Rights
from pdserve.engines.template_errors import NotAllowedError
from pdserve.terms.json import JsonMap, JsonObject
from pdserve.topology.pods import DOWNLOAD_CONTAINER

VOLUME: Final = "pdserve-model"
"""A name that no site's template uses by chance: volumes are merged by name."""
DOWNLOAD_COMMAND: Final = ("/opt/pdserve/bin/python", "-m", "pdserve.downloader")
RESOURCES: Final[Mapping[str, Mapping[str, str]]] = {
    "requests": {"cpu": "100m", "memory": "64Mi"}, "limits": {"memory": "512Mi"},
}  # fmt: skip
FILES: Final = "files"
"""Directory of the volume that has the whole download and nothing else."""
_TARGET: Final = "/model"
"""Where the init container sees the volume."""
_SECRET_VOLUME: Final = "pdserve-model-secret"  # noqa: S105 - the name of a volume
_SECRET_DIR: Final = "/etc/pdserve/model-secret"  # noqa: S105 - a directory


@dataclass(frozen=True, slots=True)
class ModelParts:
    """What a pod has for its weights."""

    volumes: tuple[JsonMap, ...] = ()
    mounts: tuple[JsonMap, ...] = ()
    """Of the engine's container."""
    downloads: tuple[JsonMap, ...] = ()
    """Init containers."""


def weights_path(source: ModelSource | None) -> str:
    """What the engine is given to load, as an absolute path in its container; empty: nothing."""
    if source is None:
        return ""
    if source.uri is not None and source.uri.content == "File":
        return f"{source.path.rstrip('/')}/{source.uri.url.rpartition('/')[2]}"
    return source.path


def check_rights(source: ModelSource | None, namespace: str, rights: Rights | None) -> None:
    """Check that the spec's author may have the Secret of a download.

    What it holds is sent to a server of the author's choice. `rights` None: anything goes.

    Raises:
        NotAllowedError: neither the API server nor the allow list gives it.
    """
    if rights is None or source is None or source.uri is None or source.uri.secret_ref is None:
        return
    path = "model.source.uri.secretRef"
    finding = Finding(SECRET_VOLUME_FIELD, path, source.uri.secret_ref.name, "no Secret of others")
    if not rights.permits(finding, namespace):
        raise NotAllowedError(finding, path)


def model_parts(
    source: ModelSource | None, namespace: str, settings: PodSettings, mounts: tuple[JsonMap, ...]
) -> ModelParts:
    """The parts for `source`.

    Args:
        source: of the spec; None: no weights are mounted.
        namespace: of the pod.
        settings: of the operator.
        mounts: of every container of pdserve's own.
    """
    if source is None:
        return ModelParts()
    if source.pvc is not None:
        claim = {"claimName": source.pvc.name, "readOnly": True}
        return _mounted(source.path, {"persistentVolumeClaim": claim}, source.pvc.sub_path)
    if source.image is not None:
        policy = source.image.pull_policy
        of_image = {"reference": source.image.reference}
        of_image |= {"pullPolicy": policy} if policy else {}
        return _mounted(source.path, {"image": of_image}, source.image.sub_path)
    if source.uri is not None:
        return _downloaded(source.path, source.uri, namespace, settings, mounts)
    return ModelParts()


def cache_key(uri: ModelUri) -> str:
    """The directory of a download in its namespace's cache."""
    secret = uri.secret_ref.name if uri.secret_ref is not None else ""
    known = json.dumps([uri.url, uri.sha256, uri.content, secret]).encode()
    return hashlib.sha256(known).hexdigest()[:32]


def _mounted(path: str, volume: JsonMap, sub_path: str | None) -> ModelParts:
    mount: JsonObject = {"name": VOLUME, "mountPath": path, "readOnly": True}
    if sub_path:
        mount["subPath"] = sub_path
    return ModelParts(({"name": VOLUME, **volume},), (mount,))


def _downloaded(
    path: str, uri: ModelUri, namespace: str, settings: PodSettings, mounts: tuple[JsonMap, ...]
) -> ModelParts:
    volume: JsonObject = {"emptyDir": {}}
    below = ""
    if cache := settings.cache_of(namespace):
        volume = {"hostPath": {"path": cache, "type": "Directory"}}
        below = f"{namespace}/{cache_key(uri)}"
    parts = _mounted(path, volume, f"{below}/{FILES}".lstrip("/"))
    target: JsonObject = {"name": VOLUME, "mountPath": _TARGET}
    own = [*mounts, target | ({"subPath": below} if below else {})]
    volumes = [*parts.volumes]
    if uri.secret_ref is not None:
        # Optional, so that the container says what is missing instead of waiting without a word.
        secret = {"secretName": uri.secret_ref.name, "optional": True, "defaultMode": 0o440}
        volumes.append({"name": _SECRET_VOLUME, "secret": secret})
        own.append({"name": _SECRET_VOLUME, "mountPath": _SECRET_DIR, "readOnly": True})
    download = {
        "name": DOWNLOAD_CONTAINER,
        "image": settings.own_image,
        "command": list(DOWNLOAD_COMMAND),
        "args": _arguments(uri),
        "resources": {kind: dict(amounts) for kind, amounts in RESOURCES.items()},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": own,
    }
    return ModelParts(tuple(volumes), parts.mounts, (download,))


def _arguments(uri: ModelUri) -> list[str]:
    secret = (
        ("--secret", uri.secret_ref.name, "--secret-dir", _SECRET_DIR) if uri.secret_ref else ()
    )
    return [
        *text_flag("--url", uri.url),
        "--sha256", uri.sha256,
        "--content", uri.content.lower(),
        "--to", _TARGET,
        "--max-bytes", str(uri.max_gigabytes * 10**9),
        *secret,
    ]  # fmt: skip
