"""Nodes and the RoCEDomain of the simulated cluster, as users and kubelets first write them."""

from __future__ import annotations

from pdserve.kube.resource import Object
from pdserve.wire import names


def node_object(name: str, leaf: str) -> Object:
    """A Node that a `domain_object` selects, without status."""
    labels = {"accelerator": "npu", "fabric/leaf": leaf, "kubernetes.io/hostname": name}
    meta = {"name": name, "labels": labels}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "spec": {}}


def domain_object(name: str) -> Object:
    """A RoCEDomain of two levels, leaf and node."""
    return {
        "apiVersion": names.API_VERSION,
        "kind": "RoCEDomain",
        "metadata": {"name": name},
        "spec": {
            "nodeSelector": {"matchLabels": {"accelerator": "npu"}},
            "levels": [
                {"name": "leaf", "nodeLabel": "fabric/leaf", "hopCost": 10},
                {"name": "node", "nodeLabel": "kubernetes.io/hostname", "hopCost": 1},
            ],
            "missingLabelPolicy": "Exclude",
            "addressSource": "NodeAnnotation",
        },
    }
