"""What a template may not change of the operator's own containers and volumes beside the engine.

The engine proxy, and the download of weights with its volume: where that is a directory of the
node, a mount of another part of it would show weights of others. Neighbour: `pods_template`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pdserve.engines.model_volume import VOLUME
from pdserve.engines.pod_members import AWAIT_CONTAINER
from pdserve.engines.template_errors import TemplateError
from pdserve.terms.json import JsonMap
from pdserve.topology.pods import DOWNLOAD_CONTAINER

_PROXY_PROTECTED: Final = ("command", "args", "readinessProbe", "lifecycle", "$patch")
_PROXY_WHY: Final = (
    "this container makes the engine an instance: its image and resources can be set"
)
_INIT_PROTECTED: Final = (
    "command", "args", "image", "volumeMounts", "volumeDevices", "restartPolicy", "lifecycle",
    "$patch",
)  # fmt: skip
_DOWNLOAD_WHY: Final = "this container downloads model.source.uri: its env and resources can be set"
_INIT_CONTAINERS: Final = {
    DOWNLOAD_CONTAINER: _DOWNLOAD_WHY,
    AWAIT_CONTAINER: "this container waits for the leader's address: its resources can be set",
}
_VOLUME_WHY: Final = "the weights are mounted in the engine's container: set model.source"


def check_own_parts(rendered: JsonMap, spec: JsonMap) -> None:
    """Check that a template leaves the operator's own containers and volumes alone.

    Args:
        rendered: pod spec without the template.
        spec: of the template; its lists of containers have been checked for their form.

    Raises:
        TemplateError: names the field.
    """
    # Containers that get the operator's variables are the operator's too.
    proxies = [
        c["name"] for c in rendered["containers"][1:] if any(map(_is_own, c.get("env") or ()))
    ]
    _check_containers(spec, "containers", proxies, dict.fromkeys(_PROXY_PROTECTED, _PROXY_WHY))
    for name, why in _INIT_CONTAINERS.items():
        if any(c["name"] == name for c in rendered.get("initContainers") or ()):
            if spec.get("initContainers", []) is None:
                raise TemplateError("template.spec.initContainers", why)
            _check_containers(spec, "initContainers", [name], dict.fromkeys(_INIT_PROTECTED, why))


def check_model_volume(rendered: JsonMap, merged: JsonMap) -> None:
    """Check that a template left downloaded weights where they are, and mounts them nowhere else.

    Args:
        rendered: pod spec without the template.
        merged: with it. A template's mount may have merged into the operator's by its path.

    Raises:
        TemplateError: it did not.
    """
    if not any(c["name"] == DOWNLOAD_CONTAINER for c in rendered.get("initContainers") or ()):
        return
    volumes = [
        [v for v in _maps(spec.get("volumes")) if v.get("name") == VOLUME]
        for spec in (rendered, merged)
    ]
    if volumes[0] != volumes[1]:
        raise TemplateError(f"template.spec.volumes[{VOLUME}]", _VOLUME_WHY)
    if _mounts(rendered) != _mounts(merged):
        raise TemplateError(f"template.spec.containers[*].volumeMounts[{VOLUME}]", _VOLUME_WHY)


def check_protected(path: str, container: JsonMap, protected: Mapping[str, str]) -> None:
    """Check that a template's container sets no protected field and no variable of the operator's.

    Args:
        path: of the container, for the error.
        container: of the template.
        protected: why, by field.

    Raises:
        TemplateError: names the field.
    """
    for key, why in protected.items():
        if key in container:
            raise TemplateError(f"{path}.{key}", why)
    entries = container.get("env")
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, Mapping) and _is_own(entry):
            raise TemplateError(f"{path}.env[{entry['name']}]", "PDSERVE_* is the operator's")


def _check_containers(
    spec: JsonMap, kind: str, names: list[str], protected: Mapping[str, str]
) -> None:
    for index, container in enumerate(spec.get(kind) or []):
        if container["name"] in names:
            check_protected(f"template.spec.{kind}[{index}]", container, protected)


def _mounts(spec: JsonMap) -> list[tuple[object, JsonMap]]:
    """(container's name, mount) of every mount of the volume."""
    return [
        (container.get("name"), mount)
        for kind in ("initContainers", "containers")
        for container in spec.get(kind) or ()
        for mount in _maps(container.get("volumeMounts"))
        if mount.get("name") == VOLUME
    ]


def _maps(entries: object) -> list[JsonMap]:
    return [e for e in entries if isinstance(e, Mapping)] if isinstance(entries, list) else []


def _is_own(variable: JsonMap) -> bool:
    return str(variable.get("name", "")).startswith("PDSERVE_")
