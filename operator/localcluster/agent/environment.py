"""Environment and command line of a container, as the kubelet would make them. Pure."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from localcluster.agent.fields import FieldError, field_value, resource_value
from pdserve.kube.resource import Object
from pdserve.terms.json import JsonMap

SourceKind = Literal["ConfigMap", "Secret"]
SourceKey = tuple[SourceKind, str]
Sources = Mapping[SourceKey, Object | None]
"""The ConfigMaps and Secrets of a pod's namespace that it names; None: there is no such object."""

_REFERENCE = re.compile(r"\$(\$|\(([^()]*)\))")
_NAME = re.compile(r"[-._a-zA-Z][-._a-zA-Z0-9]*")


class ConfigError(Exception):
    """A container cannot be made from its specification now (CreateContainerConfigError)."""


@dataclass(frozen=True, slots=True)
class PodFacts:
    """What the environment may name about where a pod runs."""

    pod: Object
    pod_ip: str
    node_ip: str
    allocatable: Mapping[str, str]


def data_of(obj: Object) -> dict[str, bytes]:
    """All entries of a ConfigMap or a Secret as bytes."""
    if obj.get("kind") == "Secret":
        return {key: base64.b64decode(value) for key, value in (obj.get("data") or {}).items()}
    entries = {key: value.encode() for key, value in (obj.get("data") or {}).items()}
    binary = obj.get("binaryData") or {}
    return entries | {key: base64.b64decode(value) for key, value in binary.items()}


def env_sources(container: JsonMap) -> Iterator[SourceKey]:
    """ConfigMaps and Secrets that a container's environment reads."""
    for item in container.get("envFrom") or ():
        for field, kind in _FROM.items():
            if field in item:
                yield kind, item[field]["name"]
    for item in container.get("env") or ():
        for field, kind in _KEYS.items():
            if field in (item.get("valueFrom") or {}):
                yield kind, item["valueFrom"][field]["name"]


def build_env(
    container: JsonMap, facts: PodFacts, sources: Sources, services: Mapping[str, str]
) -> dict[str, str]:
    """Variables that Kubernetes sets: of `services`, envFrom, env in order with `$(VAR)` expanded.

    They come over those of the image. `$(VAR)` may name only these, here and in the command.

    Raises:
        ConfigError: a ConfigMap, Secret or key that is not optional is not there.
    """
    env = dict(services)
    for item in container.get("envFrom") or ():
        env |= _env_from(item, sources)
    for item in container.get("env") or ():
        if "valueFrom" in item:
            value = _value_from(container, item, facts, sources)
            if value is None:
                continue
        else:
            value = expand(item.get("value") or "", env)
        env[item["name"]] = value
    return env


def build_argv(container: JsonMap, entrypoint: Sequence[str], env: Mapping[str, str]) -> list[str]:
    """`command` replaces the image's entrypoint; `args` follow; `$(VAR)` is expanded in both."""
    command = [expand(part, env) for part in container.get("command") or ()]
    return (command or list(entrypoint)) + [expand(a, env) for a in container.get("args") or ()]


def expand(text: str, env: Mapping[str, str]) -> str:
    """Replace `$(NAME)` by its value if it has one, and `$$` by `$`."""

    def replace(match: re.Match[str]) -> str:
        if match[1] == "$":
            return "$"
        return env.get(match[2], match[0])

    return _REFERENCE.sub(replace, text)


_FROM: dict[str, SourceKind] = {"configMapRef": "ConfigMap", "secretRef": "Secret"}
_KEYS: dict[str, SourceKind] = {"configMapKeyRef": "ConfigMap", "secretKeyRef": "Secret"}


def _env_from(item: JsonMap, sources: Sources) -> dict[str, str]:
    field, kind = next((f, k) for f, k in _FROM.items() if f in item)
    ref = item[field]
    obj = sources.get((kind, ref["name"]))
    if obj is None:
        if ref.get("optional"):
            return {}
        raise ConfigError(f'{kind.lower()} "{ref["name"]}" not found')
    prefix = item.get("prefix") or ""
    return {
        prefix + key: value.decode("utf-8", "replace")
        for key, value in sorted(data_of(obj).items())
        if _NAME.fullmatch(prefix + key)
    }


def _value_from(container: JsonMap, item: JsonMap, facts: PodFacts, sources: Sources) -> str | None:
    source = item["valueFrom"]
    try:
        if "fieldRef" in source:
            path = source["fieldRef"]["fieldPath"]
            return field_value(facts.pod, facts.pod_ip, facts.node_ip, path)
        if "resourceFieldRef" in source:
            return resource_value(container, facts.allocatable, source["resourceFieldRef"])
    except FieldError as error:
        raise ConfigError(f"env {item['name']}: {error}") from error
    for field, kind in _KEYS.items():
        if field in source:
            namespace = str(facts.pod["metadata"].get("namespace", ""))
            return _key(kind, source[field], sources, namespace)
    raise ConfigError(f"env {item['name']}: valueFrom {sorted(source)} is not supported here")


def _key(kind: SourceKind, ref: JsonMap, sources: Sources, namespace: str) -> str | None:
    obj = sources.get((kind, ref["name"]))
    if obj is None:
        if ref.get("optional"):
            return None
        raise ConfigError(f'{kind.lower()} "{ref["name"]}" not found')
    entries = data_of(obj)
    if ref["key"] in entries:
        return entries[ref["key"]].decode("utf-8", "replace")
    if ref.get("optional"):
        return None
    raise ConfigError(f"couldn't find key {ref['key']} in {kind} {namespace}/{ref['name']}")
