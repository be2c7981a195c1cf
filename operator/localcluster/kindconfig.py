"""The kind program's configuration: the user's file, with our own options added. Pure.

The file is passed to kind unchanged, so every feature of kind can be used. Our options become
kubeadm patches without an apiVersion: kind applies them to whatever version its node image needs.
"""

from __future__ import annotations

import copy

import yaml

from pdserve.terms.json import JsonMap, JsonObject

DEFAULT_NODE_GRACE = 50.0
"""Kubernetes' default for seconds of silence until a Node is NotReady."""
_DEFAULT_LEASE_SECONDS = 40


def kind_document(document: JsonMap, *, node_grace: float) -> JsonObject:
    """`document` (a kind Cluster) with silent nodes NotReady after `node_grace` seconds."""
    result = copy.deepcopy(dict(document))
    if node_grace != DEFAULT_NODE_GRACE:
        patches = result.setdefault("kubeadmConfigPatches", [])
        patches += [yaml.safe_dump(patch) for patch in node_grace_patches(node_grace)]
    return result


def node_grace_patches(seconds: float) -> list[JsonObject]:
    """Patches for kubeadm: the node controller's patience, and heartbeats that suit it.

    A kubelet renews its Lease four times within its duration. That duration stays in Kubernetes'
    own proportion to the grace, or healthy nodes would be found silent.
    """
    lease = max(1, int(seconds * _DEFAULT_LEASE_SECONDS / DEFAULT_NODE_GRACE))
    return [
        {
            "kind": "ClusterConfiguration",
            "controllerManager": {
                "extraArgs": {
                    "node-monitor-grace-period": f"{seconds:g}s",
                    "node-monitor-period": f"{min(5.0, seconds / 5):g}s",
                }
            },
        },
        {"kind": "KubeletConfiguration", "nodeLeaseDurationSeconds": lease},
    ]
