"""Credentials of a real service: what a gateway holds opens nothing else, and all are rotated."""

from __future__ import annotations

import base64
from collections.abc import Iterator

import pytest
import urllib3
from tests.support import scenarios as s
from tests.support.following import Following
from tests.support.installed import Installed, fixed, make_namespace, pdservice, scenario

from pdserve.wire import calls, names
from pdserve.wire.credentials import control_token

pytestmark = pytest.mark.cluster

NAMESPACE = "secrets"
USES = ("control", "request", "kv")


@pytest.fixture(scope="module")
def service_cluster(installed: Installed) -> Iterator[s.Cluster]:
    found = installed.cluster
    make_namespace(found, NAMESPACE)
    document = pdservice(
        NAMESPACE, NAMESPACE, scenario("chat", fixed(1, 1, 2)), gateway={"replicas": 2}
    )
    found.apply(document, namespace=NAMESPACE)
    s.wait_service(found, NAMESPACE, NAMESPACE)
    yield found
    found.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def stored(cluster: s.Cluster) -> dict[str, str]:
    """What the operator alone reads."""
    path = f"/api/v1/namespaces/{NAMESPACE}/secrets/{names.credentials_secret_name(NAMESPACE)}"
    data = (cluster.get(path) or {})["data"]
    return {use: base64.b64decode(data[use]).decode() for use in USES}


def answers(cluster: s.Cluster, pod: s.Json, method: str, path: str, token: str | None) -> int:
    """Status of a request straight to an instance."""
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    url = cluster.url(pod) + path
    reply = urllib3.request(method, url, body=b"{}", headers=headers, timeout=60.0, retries=False)
    return int(reply.status)


CONTROL = (("PUT", calls.PATH_PEERS), ("GET", calls.PATH_LINKS), ("POST", calls.PATH_DRAIN))
REQUEST = (
    ("POST", calls.PATH_COMPLETIONS),
    ("POST", calls.PATH_CHAT),
    ("POST", calls.PATH_RELEASE),
)


def test_each_credential_opens_its_own_paths(service_cluster: s.Cluster) -> None:
    cluster = service_cluster
    held = stored(cluster)
    gateway = s.wait_gateways(cluster, NAMESPACE, NAMESPACE, 2)[0]
    seen = str(gateway["spec"])
    assert names.request_secret_name(NAMESPACE) in seen
    assert names.credentials_secret_name(NAMESPACE) not in seen
    assert names.token_secret_name(NAMESPACE) not in seen
    pod, other = s.pods(cluster, NAMESPACE)[:2]
    own = control_token(held["control"], NAMESPACE, s.name_of(pod))
    theirs = control_token(held["control"], NAMESPACE, s.name_of(other))
    assert answers(cluster, pod, "GET", calls.PATH_LINKS, own) == 200
    for method, path in CONTROL:
        for wrong in (None, held["request"], theirs, held["control"]):
            assert answers(cluster, pod, method, path, wrong) == 401, path
    for method, path in REQUEST:
        for wrong in (None, own, held["kv"]):
            assert answers(cluster, pod, method, path, wrong) == 401, path
        assert answers(cluster, pod, method, path, held["request"]) != 401, path


def test_all_secrets_are_rotated_under_load(service_cluster: s.Cluster) -> None:
    cluster = service_cluster
    before, alive = stored(cluster), s.pods(cluster, NAMESPACE)
    identities = {s.name_of(p): p["metadata"]["uid"] for p in alive}
    with Following(cluster, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(10)
        resource = f"pdservice/{NAMESPACE}"
        rotate = f"{names.ANNOTATION_ROTATE}=1"
        cluster.kubectl("annotate", resource, "-n", NAMESPACE, "--overwrite", rotate)

        def rotated() -> bool:
            found = s.condition(s.service(cluster, NAMESPACE, NAMESPACE), "CredentialsRotated")
            return found.get("status") == "True"

        s.until("all credentials were rotated", rotated)
        traffic.wait_more(20)
    assert [o.error for o in traffic.outcomes if o.error] == []
    after = stored(cluster)
    for use in USES:
        assert after[use] != before[use]
        assert "\n" not in after[use]
    assert identities == {s.name_of(p): p["metadata"]["uid"] for p in s.pods(cluster, NAMESPACE)}
    for pod in s.pods(cluster, NAMESPACE):
        old = control_token(before["control"], NAMESPACE, s.name_of(pod))
        assert answers(cluster, pod, "GET", calls.PATH_LINKS, old) == 401
        release = ("POST", calls.PATH_RELEASE)
        assert answers(cluster, pod, *release, before["request"]) == 401
