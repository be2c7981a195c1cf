"""A pod's volumes as directories of this machine.

`objects` fetches what they are made from; `sandbox` mounts them. Files from ConfigMaps, Secrets,
the downward API and projections change all at once, as the kubelet's do: each generation is a
directory of its own, and the link `..data` moves from one to the next.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster.agent.environment import PodFacts, SourceKey, SourceKind, Sources, data_of
from localcluster.agent.fields import FieldError, field_value, resource_value
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap, JsonObject

DEFAULT_MODE = 0o644
DEFAULT_TOKEN_SECONDS = 3600

TokenKey = tuple[str, int]
"""(audience or "", seconds asked for) of a service account token."""
Files = dict[str, tuple[bytes, int]]
"""Path inside the volume -> (content, file mode)."""

_LIVE = ("configMap", "secret", "downwardAPI", "projected")
_generations = itertools.count(1)


class VolumeError(Exception):
    """A volume cannot be made (now); the message is what the kubelet's event would say."""


@dataclass(frozen=True, slots=True)
class VolumeInputs:
    """Everything the content of a pod's volumes depends on."""

    facts: PodFacts
    sources: Sources
    tokens: Mapping[TokenKey, str]


def volumes_of(pod: Object) -> list[JsonObject]:
    """The pod's volumes."""
    return list(pod["spec"].get("volumes") or ())


def volume_sources(pod: Object) -> Iterator[SourceKey]:
    """ConfigMaps and Secrets that the pod's volumes read."""
    for source in _all_sources(pod):
        if "configMap" in source:
            yield "ConfigMap", source["configMap"]["name"]
        if "secret" in source:
            yield "Secret", _secret_name(source["secret"])


def volume_tokens(pod: Object) -> set[TokenKey]:
    """Service account tokens that the pod's volumes need."""
    return {
        _token_key(source["serviceAccountToken"])
        for source in _all_sources(pod)
        if "serviceAccountToken" in source
    }


def host_path(volume: JsonMap, root: Path) -> Path:
    """The directory (or file) of this machine that a volume is."""
    if "hostPath" in volume:
        return Path(volume["hostPath"]["path"])
    return root / str(volume["name"])


def write_volumes(pod: Object, root: Path, inputs: VolumeInputs) -> None:
    """Make or refresh every volume of `pod` under `root`.

    Raises:
        VolumeError: a kind this node does not have, or something it is made from is missing.
    """
    for volume in volumes_of(pod):
        target = host_path(volume, root)
        if "emptyDir" in volume:
            target.mkdir(parents=True, exist_ok=True)
            target.chmod(0o777)
        elif "hostPath" in volume:
            if not target.exists():
                raise VolumeError(f"volume {volume['name']}: hostPath {target} does not exist")
        elif any(kind in volume for kind in _LIVE):
            _publish(target, volume_files(volume, pod, inputs))
        else:
            kind = ", ".join(sorted(set(volume) - {"name"}))
            raise VolumeError(f"volume {volume['name']}: process nodes have no {kind} volumes")


def volume_files(volume: JsonMap, pod: Object, inputs: VolumeInputs) -> Files:
    """Content of a configMap, secret, downwardAPI or projected volume. Pure."""
    if "projected" not in volume:
        return _source_files(volume, pod, inputs, DEFAULT_MODE)
    projected = volume["projected"]
    mode = int(projected.get("defaultMode") or DEFAULT_MODE)
    files: Files = {}
    for source in projected.get("sources") or ():
        files |= _source_files(source, pod, inputs, mode)
    return files


def _all_sources(pod: Object) -> Iterator[JsonMap]:
    for volume in volumes_of(pod):
        if "projected" in volume:
            yield from volume["projected"].get("sources") or ()
        else:
            yield volume


def _source_files(source: JsonMap, pod: Object, inputs: VolumeInputs, mode: int) -> Files:
    if "configMap" in source:
        ref = source["configMap"]
        return _object_files("ConfigMap", ref["name"], ref, inputs, mode)
    if "secret" in source:
        ref = source["secret"]
        return _object_files("Secret", _secret_name(ref), ref, inputs, mode)
    if "downwardAPI" in source:
        return _downward_files(source["downwardAPI"], pod, inputs.facts, mode)
    if "serviceAccountToken" in source:
        ref = source["serviceAccountToken"]
        return {ref["path"]: (inputs.tokens[_token_key(ref)].encode(), mode)}
    raise VolumeError(f"projected source {sorted(source)} is not supported here")


def _object_files(
    kind: SourceKind, name: str, ref: JsonMap, inputs: VolumeInputs, mode: int
) -> Files:
    mode = int(ref.get("defaultMode") or mode)
    optional = bool(ref.get("optional"))
    obj = inputs.sources.get((kind, name))
    if obj is None:
        if optional:
            return {}
        raise VolumeError(f'{kind.lower()} "{name}" not found')
    entries = data_of(obj)
    if not ref.get("items"):
        return {key: (value, mode) for key, value in entries.items()}
    files: Files = {}
    for item in ref["items"]:
        if item["key"] in entries:
            files[item["path"]] = (entries[item["key"]], int(item.get("mode") or mode))
        elif not optional:
            raise VolumeError(f'{kind.lower()} "{name}" has no key {item["key"]!r}')
    return files


def _downward_files(ref: JsonMap, pod: Object, facts: PodFacts, mode: int) -> Files:
    files: Files = {}
    mode = int(ref.get("defaultMode") or mode)
    containers = {c["name"]: c for c in pod["spec"]["containers"]}
    for item in ref.get("items") or ():
        try:
            if "fieldRef" in item:
                path = item["fieldRef"]["fieldPath"]
                value = field_value(pod, facts.pod_ip, facts.node_ip, path)
            else:
                field = item["resourceFieldRef"]
                container = containers[field["containerName"]]
                value = resource_value(container, facts.allocatable, field)
        except (FieldError, KeyError) as error:
            raise VolumeError(f"downwardAPI {item.get('path')}: {error}") from error
        files[item["path"]] = (value.encode(), int(item.get("mode") or mode))
    return files


def _publish(target: Path, files: Files) -> None:
    """Show exactly `files` in `target`, switching from the old ones in one rename."""
    target.mkdir(parents=True, exist_ok=True)
    data = target / "..data"
    if data.is_symlink() and _shown(data) == files:
        return
    old = data.resolve() if data.is_symlink() else None
    fresh = target / f"..{next(_generations)}"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    for name, (content, mode) in files.items():
        path = fresh / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        path.chmod(mode)
    link = target / "..data_new"
    link.unlink(missing_ok=True)
    link.symlink_to(fresh.name)
    link.rename(data)
    tops = {name.split("/")[0] for name in files}
    for top in tops:
        if not os.path.lexists(target / top):
            (target / top).symlink_to(f"..data/{top}")
    for entry in target.iterdir():
        # Only our links: a file here may be the mount point of a volume inside this one.
        if entry.is_symlink() and entry.name != "..data" and entry.name not in tops:
            entry.unlink()
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _shown(data: Path) -> Files:
    root = data.resolve()
    return {
        str(path.relative_to(root)): (path.read_bytes(), path.stat().st_mode & 0o7777)
        for path in root.rglob("*")
        if path.is_file()
    }


def _secret_name(ref: JsonMap) -> str:
    # A secret volume says secretName, a projected secret says name.
    return str(ref.get("secretName") or ref.get("name"))


def _token_key(ref: JsonMap) -> TokenKey:
    return str(ref.get("audience") or ""), int(
        ref.get("expirationSeconds") or DEFAULT_TOKEN_SECONDS
    )
