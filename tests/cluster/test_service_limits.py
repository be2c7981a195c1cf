"""Limits of a real service: its two gateways hold them together, also when one of them goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest
import urllib3
from tests.support import scenarios as s
from tests.support.installed import Installed, fixed, make_namespace, pdservice, scenario

from pdserve.wire import names

pytestmark = pytest.mark.cluster

NAMESPACE = "limits"
A_MINUTE = 6


@pytest.fixture(scope="module")
def limited(installed: Installed) -> Iterator[s.Cluster]:
    found = installed.cluster
    make_namespace(found, NAMESPACE)
    chat = scenario("chat", fixed(1, 1, 1)) | {"limits": {"requestsPerMinute": A_MINUTE}}
    document = pdservice(NAMESPACE, NAMESPACE, chat, gateway={"replicas": 2})
    found.apply(document, namespace=NAMESPACE)
    s.wait_service(found, NAMESPACE, NAMESPACE)
    yield found
    found.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def listed(cluster: s.Cluster) -> list[str]:
    """Gateways in the route table, the one that decides first."""
    name = names.routes_configmap_name(NAMESPACE)
    found = cluster.get(f"/api/v1/namespaces/{NAMESPACE}/configmaps/{name}") or {}
    table = json.loads(found.get("data", {}).get(names.KEY_ROUTES, "{}"))
    return [g["id"] for g in table.get("gateways", [])]


def ask(cluster: s.Cluster, pod: s.Json) -> urllib3.BaseHTTPResponse:
    body = json.dumps({"model": "pdserve-tiny", "prompt": "Once", "max_tokens": 2})
    url = f"{cluster.url(pod)}/v1/completions"
    headers = {"content-type": "application/json"}
    return urllib3.request("POST", url, body=body, headers=headers, timeout=60.0, retries=False)


def test_two_gateways_hold_one_limit_and_a_new_one_knows_what_was_used(limited: s.Cluster) -> None:
    cluster = limited
    s.until("both gateways are in the table", lambda: len(listed(cluster)) == 2)
    pods = {s.name_of(p): p for p in s.wait_gateways(cluster, NAMESPACE, NAMESPACE, 2)}
    decides, other = listed(cluster)
    started = time.monotonic()
    answers = [ask(cluster, pods[name]) for _ in range(A_MINUTE) for name in (other, decides)]
    admitted = sum(a.status == 200 for a in answers)
    most = A_MINUTE * (1 + (time.monotonic() - started) / 60)
    assert A_MINUTE <= admitted <= most, [a.status for a in answers]
    assert {a.status for a in answers} == {200, 429}
    refused = next(a for a in answers if a.status == 429)
    assert refused.headers["x-ratelimit-limit-requests"] == str(A_MINUTE)
    assert float(refused.headers["retry-after"]) > 0

    cluster.kubectl("delete", "pod", decides, "-n", NAMESPACE, "--wait=false")
    s.until("the other one decides", lambda: listed(cluster)[:1] == [other])
    s.until("two gateways are in the table", lambda: len(listed(cluster)) == 2)
    pods = {s.name_of(p): p for p in s.wait_gateways(cluster, NAMESPACE, NAMESPACE, 2)}
    newest = listed(cluster)[1]
    answers = [ask(cluster, pods[name]) for _ in range(A_MINUTE) for name in (newest, other)]
    admitted += sum(a.status == 200 for a in answers)
    most = A_MINUTE * (1 + (time.monotonic() - started) / 60)
    assert admitted <= most, [a.status for a in answers]
