"""K7.2: gateways of clusters that ask more of a pod, on a real API server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.support.api_objects import edited, pdservice
from tests.support.rest import Answer, Rest

from pdserve.api import PDService
from pdserve.desired.objects import gateway_pod
from pdserve.engines.pod_profile import Rights

pytestmark = pytest.mark.api

LIMITED, LABELLED = "gateway-limited", "gateway-labelled"
ADMISSION = "/apis/admissionregistration.k8s.io/v1"
POLICIES = f"{ADMISSION}/validatingadmissionpolicies"
BINDINGS = f"{ADMISSION}/validatingadmissionpolicybindings"


def asked(rest: Rest, namespace: str, gateway: dict[str, Any]) -> Answer:
    """Would the namespace take a gateway with these fields?"""
    edits = {"metadata.namespace": namespace, "spec.gateway": gateway}
    pod = gateway_pod(PDService.parse(edited(pdservice(), edits)), "g:1", "f", Rights())
    pod["metadata"]["name"] = "asked"
    return rest.create(f"/api/v1/namespaces/{namespace}/pods", pod, dryRun="All")


@pytest.fixture(scope="module", autouse=True)
def prepared(rest: Rest) -> Iterator[None]:
    """A LimitRange that asks for 256Mi, and a policy that asks for label cost-center."""
    for name, labels in ((LIMITED, {}), (LABELLED, {"policy": "cost-center"})):
        namespace = {"metadata": {"name": name, "labels": labels}}
        assert rest.create("/api/v1/namespaces", namespace).code == 201
    limit = {"type": "Container", "min": {"memory": "256Mi"}, "default": {"memory": "1Gi"}}
    path = f"/api/v1/namespaces/{LIMITED}/limitranges"
    body = {"metadata": {"name": "floor"}, "spec": {"limits": [limit]}}
    assert rest.create(path, body).code == 201
    rules = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"],
             "resources": ["pods"]}  # fmt: skip
    policy = {
        "metadata": {"name": "cost-center"},
        "spec": {
            "matchConstraints": {"resourceRules": [rules]},
            "validations": [{"expression": "'cost-center' in object.metadata.labels",
                             "message": "every pod needs label cost-center"}],
        },
    }  # fmt: skip
    binding = {
        "metadata": {"name": "cost-center"},
        "spec": {
            "policyName": "cost-center",
            "validationActions": ["Deny"],
            "matchResources": {"namespaceSelector": {"matchLabels": {"policy": "cost-center"}}},
        },
    }
    assert rest.create(POLICIES, policy).code == 201
    assert rest.create(BINDINGS, binding).code == 201
    yield
    rest.call("DELETE", f"{BINDINGS}/cost-center")
    rest.call("DELETE", f"{POLICIES}/cost-center")


def until_refused(rest: Rest, namespace: str) -> str:
    """Admission takes up new objects in its own time."""
    deadline = time.monotonic() + 60
    while (answer := asked(rest, namespace, {})).code == 201:
        assert time.monotonic() < deadline, "never refused"
        time.sleep(0.2)
    return str(answer.body["message"])


def test_a_limit_range_is_met_by_its_resources(rest: Rest) -> None:
    assert "minimum memory usage per Container is 256Mi" in until_refused(rest, LIMITED)
    enough = {"resources": {"requests": {"memory": "256Mi"}}}
    answer = asked(rest, LIMITED, enough)
    assert answer.code == 201, answer.body


def test_a_label_policy_is_met_by_its_template(rest: Rest) -> None:
    assert "cost-center" in until_refused(rest, LABELLED)
    labelled = {"template": {"metadata": {"labels": {"cost-center": "7"}}}}
    answer = asked(rest, LABELLED, labelled)
    assert answer.code == 201, answer.body
