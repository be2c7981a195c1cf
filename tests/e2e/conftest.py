"""Fixtures of the end-to-end tests: pdserve installed in a cluster of real kubelets."""

from __future__ import annotations

import pytest
from tests.support.installed import Installed
from tests.support.real_cluster import KindCluster


@pytest.fixture
def kind(installed: Installed) -> KindCluster:
    """The cluster under test, when its nodes are containers that can be broken."""
    if not isinstance(installed.cluster, KindCluster):
        pytest.skip("nodes of this cluster cannot be broken from here (kind's can)")
    return installed.cluster


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Everything here needs real kubelets, except what brings its own cluster."""
    if config.getoption("--nodes") != "process":
        return
    reason = "needs real kubelets: make e2e, or pytest --nodes kind tests/e2e"
    for item in items:
        if "installed" in getattr(item, "fixturenames", ()) and "tests/e2e/" in item.nodeid:
            item.add_marker(pytest.mark.skip(reason=reason))
