"""K7.1: who has Kubernetes' roles admin, edit or view in a namespace has them for PDServices."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from tests.support.chart import render
from tests.support.rest import Rest

from localcluster.controlplane import ControlPlane
from pdserve.cli import snapshot
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import api_client
from pdserve.kube.transport import HttpTransport

pytestmark = pytest.mark.api

NAMESPACE = "chart-roles"
RBAC = "/apis/rbac.authorization.k8s.io/v1"
ROLES = ("admin", "edit", "view")


@pytest.fixture(scope="module", autouse=True)
def bound(rest: Rest) -> Iterator[None]:
    """User `the-ROLE` has ROLE in NAMESPACE. No controller aggregates roles here: the chart's part
    of each is bound; that its label is the right one is compared with Kubernetes' own rule.
    """
    assert rest.create("/api/v1/namespaces", {"metadata": {"name": NAMESPACE}}).code == 201
    made = []
    for document in render():
        role = document["metadata"]["name"].rpartition("-")[2]
        if document["kind"] != "ClusterRole" or role not in ROLES:
            continue
        whole = rest.get(f"{RBAC}/clusterroles/{role}").body
        selectors = whole["aggregationRule"]["clusterRoleSelectors"]
        labels = document["metadata"]["labels"].items()
        assert any(s["matchLabels"].items() <= labels for s in selectors), role
        assert rest.create(f"{RBAC}/clusterroles", document).code == 201
        name = document["metadata"]["name"]
        made.append(f"{RBAC}/clusterroles/{name}")
        for ref, part in ((name, "part"), (role, "whole")):
            binding = {
                "metadata": {"name": f"{role}-{part}"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole",
                            "name": ref},
                "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User",
                              "name": f"the-{role}"}],
            }  # fmt: skip
            path = f"{RBAC}/namespaces/{NAMESPACE}/rolebindings"
            assert rest.create(path, binding).code == 201
    assert len(made) == len(ROLES)
    yield
    for path in made:
        rest.call("DELETE", path)


def may(rest: Rest, user: str, verb: str, resource: str, namespace: str = NAMESPACE) -> bool:
    """Whether a user may; `resource` is plural[/subresource]."""
    plural, _, sub = resource.partition("/")
    asked = {"namespace": namespace, "verb": verb, "group": "pdserve.io", "resource": plural,
             "subresource": sub}  # fmt: skip
    review = {"spec": {"user": user, "resourceAttributes": asked}}
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    return bool(rest.create(path, review).body["status"]["allowed"])


WRITES = [
    ("create", "pdservices"), ("patch", "pdservices"), ("delete", "pdservices"),
    ("create", "scenariogroups"), ("patch", "scenariogroups/scale"),
]  # fmt: skip
READS = [
    ("get", "pdservices"), ("list", "scenariogroups"), ("watch", "pdservices"),
    ("get", "scenariogroups/scale"),
]  # fmt: skip


@pytest.mark.parametrize(("verb", "resource"), WRITES + READS)
def test_each_role_may_what_it_says(rest: Rest, verb: str, resource: str) -> None:
    reads = (verb, resource) in READS
    assert may(rest, "the-view", verb, resource) is reads
    if not reads:
        assert may(rest, "the-edit", verb, resource)
        assert may(rest, "the-admin", verb, resource)
    for role in ROLES:
        assert not may(rest, f"the-{role}", verb, resource, "default"), "only where it is bound"


def test_no_role_may_write_status(rest: Rest) -> None:
    for role in ROLES:
        assert not may(rest, f"the-{role}", "patch", "pdservices/status")


async def test_explain_tells_what_it_may_not_see(control_plane: ControlPlane, rest: Rest) -> None:
    api = await api_client(control_plane.kubeconfig)
    api.set_default_header("Impersonate-User", "the-admin")
    client = KubeClient(HttpTransport(api, Registry()))
    try:
        found = await snapshot.read_fabric(client, "any")
    finally:
        await client.close()
    assert isinstance(found, snapshot.NoRight)
    assert "the-admin" in found.message
