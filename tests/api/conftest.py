"""Fixtures of the API tests: a plain client, with our CRDs installed."""

from __future__ import annotations

import pytest
from tests.support.crds import install
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane


@pytest.fixture(scope="session")
def rest(control_plane: ControlPlane) -> Rest:
    """The API server with the CRDs of this checkout."""
    client = Rest.of(control_plane)
    install(client)
    return client
