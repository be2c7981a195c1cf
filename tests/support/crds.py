"""Our CRDs on a test's control plane."""

from __future__ import annotations

import time
from pathlib import Path

import yaml
from tests.support.rest import Rest

from pdserve.api import API_VERSION, KINDS

CRDS = Path(__file__).parents[2] / "crds"
_PLURALS = {kind.info.name: kind.info for kind in KINDS}


def collection(kind: str, namespace: str = "default") -> str:
    """URL path of all objects of a kind (in one namespace)."""
    info = _PLURALS[kind]
    where = f"/namespaces/{namespace}" if info.scope == "Namespaced" else ""
    return f"/apis/{API_VERSION}{where}/{info.plural}"


def install(rest: Rest, timeout: float = 30.0) -> None:
    """Create the CRDs of this checkout and wait until the server serves them.

    Raises:
        AssertionError: the server refuses one, or does not serve it in time.
    """
    for path in sorted(CRDS.glob("*.yaml")):
        crd = yaml.safe_load(path.read_text())
        answer = rest.create("/apis/apiextensions.k8s.io/v1/customresourcedefinitions", crd)
        assert answer.code in (201, 409), answer.body
    deadline = time.monotonic() + timeout
    while missing := [k for k in _PLURALS if rest.get(collection(k)).code != 200]:
        assert time.monotonic() < deadline, f"not served after {timeout} s: {missing}"
        time.sleep(0.05)
