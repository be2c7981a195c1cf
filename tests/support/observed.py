"""Instances judged and observed from raw objects, as the operator reads them."""

from __future__ import annotations

from typing import Any

from pdserve.groups import health, observe
from pdserve.groups.health import HealthVerdict
from pdserve.groups.instances import InstanceObs
from pdserve.topology import NodeView, node_view, pod_view

Raw = dict[str, Any]


def classify(pod: Raw, node: Raw | None, *args: Any, **more: Any) -> HealthVerdict:
    """`health.classify` of raw objects."""
    return health.classify(pod_view(pod), _view(node), *args, **more)


def instance_obs(pod: Raw, node: Raw | None, *args: Any) -> InstanceObs:
    """`observe.instance_obs` of raw objects."""
    return observe.instance_obs(pod_view(pod), _view(node), *args)


def _view(node: Raw | None) -> NodeView | None:
    return None if node is None else node_view(node)
