"""Reads kind's cluster format, so that one file describes process nodes and kind nodes alike.

Only what a process node can have is used: the number of workers, and their labels. Settings of
containers (images, port mappings, kubeadm patches) are accepted and not used. A field that kind
itself does not have is refused with its path: it is a mistake in either case.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from localcluster.errors import LocalError

API_VERSION = "kind.x-k8s.io/v1alpha4"
LABEL_DEVICES = "local.pdserve.io/devices"
"""Optional worker label: its number of devices, where it differs from the cluster's."""
MAX_NODES = 200
MAX_DEVICES = 16

_TOP = {
    "kind", "apiVersion", "name", "nodes", "networking", "featureGates", "runtimeConfig",
    "kubeadmConfigPatches", "kubeadmConfigPatchesJSON6902", "containerdConfigPatches",
    "containerdConfigPatchesJSON6902",
}  # fmt: skip
_NODE = {
    "role", "labels", "image", "extraMounts", "extraPortMappings", "kubeadmConfigPatches",
    "kubeadmConfigPatchesJSON6902",
}  # fmt: skip
_ROLES = ("control-plane", "worker")


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One process node: its name, its labels, how many devices it has."""

    name: str
    labels: Mapping[str, str]
    devices: int


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """What a local cluster consists of; `resource` is the extended resource of every device."""

    nodes: tuple[NodeSpec, ...]
    resource: str = "huawei.com/Ascend910"


def read_document(path: Path) -> Any:
    """A kind file as it is, parsed from YAML.

    Raises:
        LocalError: it is unreadable or not YAML.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise LocalError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise LocalError(f"{path}: not YAML: {error}") from error


def load_config(path: Path, *, resource: str, devices: int) -> ClusterConfig:
    """Read a kind file; `devices` per worker unless its label says otherwise.

    Raises:
        LocalError: unreadable, not YAML, or not kind's format (names file, field and value).
    """
    document = read_document(path)
    try:
        return parse_config(document, resource=resource, devices=devices)
    except LocalError as error:
        raise LocalError(f"{path}: {error}") from error


def parse_config(document: Any, *, resource: str, devices: int) -> ClusterConfig:
    """`load_config` without the file.

    `devices`: how many of `resource` each worker has, unless the document says otherwise.

    Raises:
        LocalError: the document is no kind cluster that process nodes can be.
    """
    if not isinstance(document, dict):
        raise LocalError("expected a mapping with kind: Cluster")
    for field, wanted in (("kind", "Cluster"), ("apiVersion", API_VERSION)):
        if document.get(field) != wanted:
            raise LocalError(f"{field}: {document.get(field)!r}, expected {wanted!r}")
    _only(document, _TOP, "")
    nodes = document.get("nodes")
    if not isinstance(nodes, list) or not nodes:
        raise LocalError("nodes: expected a list with at least one worker")
    workers: list[NodeSpec] = []
    for index, node in enumerate(nodes):
        if (spec := _node(node, f"nodes[{index}]", len(workers), devices)) is not None:
            workers.append(spec)
    if not 1 <= len(workers) <= MAX_NODES:
        raise LocalError(f"nodes: {len(workers)} with role worker, expected 1 to {MAX_NODES}")
    return ClusterConfig(tuple(workers), resource)


def _node(node: Any, where: str, ordinal: int, devices: int) -> NodeSpec | None:
    if not isinstance(node, dict):
        raise LocalError(f"{where}: expected a mapping with a role")
    _only(node, _NODE, f"{where}.")
    role = node.get("role")
    if role not in _ROLES:
        raise LocalError(f"{where}.role: {role!r}, expected one of {', '.join(_ROLES)}")
    if role != "worker":
        return None
    labels = node.get("labels") or {}
    if not isinstance(labels, dict):
        raise LocalError(f"{where}.labels: expected a mapping")
    for key, value in labels.items():
        if not isinstance(value, str):
            raise LocalError(f"{where}.labels.{key}: {value!r}, expected text; put it in quotes")
    if LABEL_DEVICES in labels:
        text = labels[LABEL_DEVICES]
        if not text.isdecimal() or int(text) > MAX_DEVICES:
            raise LocalError(
                f"{where}.labels.{LABEL_DEVICES}: {text!r}, expected 0 to {MAX_DEVICES}"
            )
        devices = int(text)
    # kind names its workers so: the first without a number.
    name = "pdserve-worker" + (str(ordinal + 1) if ordinal else "")
    return NodeSpec(name, dict(labels), devices)


def _only(mapping: Mapping[Any, Any], known: set[str], where: str) -> None:
    for key in mapping:
        if key not in known:
            raise LocalError(f"{where}{key}: kind has no such field")
