"""Credentials of a real service: what a gateway holds opens nothing else, and all are rotated."""

from __future__ import annotations

import base64
import threading
import time
from collections.abc import Iterator

import pytest
import urllib3
from tests.support import scenarios as s
from tests.support.installed import Installed, fixed, make_namespace, pdservice, scenario
from tests.support.traffic import Outcome, client, stream

from pdserve.wire import http, names
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


class Following:
    """Clients that use the gateways that are ready, as a Service's endpoints would have them."""

    def __init__(self, cluster: s.Cluster, workers: int = 2) -> None:
        self._cluster, self._workers = cluster, workers
        self._over = threading.Event()
        self.outcomes: list[Outcome] = []
        self.urls: tuple[str, ...] = ()

    def __enter__(self) -> Following:
        self._look()
        jobs = [self._watch, *[self._work] * self._workers]
        self._threads = [threading.Thread(target=job, daemon=True) for job in jobs]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(120.0)
            assert not thread.is_alive(), "a request neither ended nor failed"

    @property
    def completed(self) -> int:
        return sum(1 for o in self.outcomes if o.ended is not None and not o.error)

    def wait_more(self, count: int) -> None:
        before = self.completed
        s.until(f"{count} more requests", lambda: self.completed >= before + count)

    def _look(self) -> None:
        found = s.gateways(self._cluster, NAMESPACE, NAMESPACE)
        urls = [self._cluster.url(p) for p in found if s.is_ready(p) and not s.leaving(p)]
        self.urls = tuple(urls) or self.urls

    def _watch(self) -> None:
        while not self._over.wait(0.2):
            self._look()

    def _work(self) -> None:
        turn = 0
        while not self._over.is_set():
            turn += 1
            outcome = Outcome(time.monotonic())
            self.outcomes.append(outcome)
            api = client(self.urls[turn % len(self.urls)])
            stream(api, f"Tell me about the sea {turn}", 8, outcome)


def answers(cluster: s.Cluster, pod: s.Json, method: str, path: str, token: str | None) -> int:
    """Status of a request straight to an instance."""
    headers = {"content-type": "application/json"}
    if token is not None:
        headers["authorization"] = f"Bearer {token}"
    url = cluster.url(pod) + path
    reply = urllib3.request(method, url, body=b"{}", headers=headers, timeout=60.0, retries=False)
    return int(reply.status)


CONTROL = (("PUT", http.PATH_PEERS), ("GET", http.PATH_LINKS), ("POST", http.PATH_DRAIN))
REQUEST = (("POST", http.PATH_COMPLETIONS), ("POST", http.PATH_CHAT), ("POST", http.PATH_RELEASE))


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
    assert answers(cluster, pod, "GET", http.PATH_LINKS, own) == 200
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
    with Following(cluster) as traffic:
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
        assert answers(cluster, pod, "GET", http.PATH_LINKS, old) == 401
        release = ("POST", http.PATH_RELEASE)
        assert answers(cluster, pod, *release, before["request"]) == 401
