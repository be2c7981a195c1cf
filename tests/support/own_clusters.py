"""Local clusters that a test starts itself, and what runs in them."""

from __future__ import annotations

import pytest
from tests.support.cluster import (
    FAST_AGENT,
    FAST_CONTROL_PLANE,
)

from localcluster.config import ClusterConfig, NodeSpec
from localcluster.plan import ClusterPlan

own_cluster = pytest.mark.timeout(400)
"""For tests that start clusters themselves: a fixture would have no limit."""
DEPLOYMENT = """
apiVersion: apps/v1
kind: Deployment
metadata: {name: %(name)s}
spec:
  replicas: 3
  selector: {matchLabels: {app: %(name)s}}
  template:
    metadata: {labels: {app: %(name)s}}
    spec:
      terminationGracePeriodSeconds: 1
      tolerations: [{operator: Exists, effect: NoExecute}]
      containers:
      - name: main
        image: pdserve/engine
        command: [sh, -c, "sleep 1000 & exec sleep 1000"]
"""


def small_plan(name: str, nodes: int = 1) -> ClusterPlan:
    specs = tuple(NodeSpec(f"{name}-{i}", {}, 2) for i in range(nodes))
    return ClusterPlan(name, ClusterConfig(specs), FAST_CONTROL_PLANE, FAST_AGENT)
