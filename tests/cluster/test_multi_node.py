"""Instances of several pods serve as one, and one member's end is one instance's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from openai import OpenAI
from tests.cluster.test_service_output import GREEDY, PROMPTS, SEEDED, complete
from tests.support import scenarios as s
from tests.support.following import Following
from tests.support.installed import (
    Installed,
    fetch,
    fixed,
    image,
    make_namespace,
    pdservice,
    role,
    scenario,
)
from tests.support.traffic import MODEL, client

from pdserve.wire import calls, names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAMESPACE = "multi"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
WAIT = 180.0


def wide_role(slots: int, devices: int) -> s.Json:
    """A role of instances of two pods."""
    made = role(slots=slots, devices=devices)
    made["instance"]["nodes"] = 2
    return made


@pytest.fixture(scope="module")
def multi(installed: Installed) -> Iterator[s.Cluster]:
    """1P2D of instances of two pods each; those of the prefill are too large for one node."""
    made = installed.cluster
    make_namespace(made, NAMESPACE)
    document = pdservice(
        NAMESPACE, NAMESPACE, scenario("chat", fixed(1, 1, 2)),
        prefill=wide_role(4, 5), decode=wide_role(8, 1),
    )  # fmt: skip
    made.apply(document, namespace=NAMESPACE)
    s.wait_service(made, NAMESPACE, NAMESPACE, WAIT)
    yield made
    made.kubectl("delete", "pdservice", NAMESPACE, "-n", NAMESPACE)
    s.until("its pods are gone", lambda: not s.pods(made, NAMESPACE))
    made.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


@pytest.fixture(scope="module")
def aggregated(multi: s.Cluster) -> OpenAI:
    """One engine of role `both`, of one pod."""
    container = {
        "name": "engine", "image": image("engine"),
        "args": ["--role", "both", "--slots", "4", "--model-name", MODEL],
        "readinessProbe": {"httpGet": {"path": "/readyz", "port": 8000}, "periodSeconds": 1},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }  # fmt: skip
    spec = {
        "containers": [container], "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
    }  # fmt: skip
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "aggregated"}, "spec": spec}
    multi.apply(pod, namespace=NAMESPACE)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/aggregated"
    s.until("the aggregated engine ready", lambda: s.is_ready(multi.get(path)))
    return client(multi.url(multi.get(path) or {}))


def instances(cluster: s.Cluster) -> dict[str, set[str]]:
    """Names of the pods that stay, by instance."""
    found: dict[str, set[str]] = {}
    for pod in s.pods(cluster, NAMESPACE):
        if not s.leaving(pod):
            name = pod["metadata"]["labels"][names.LABEL_INSTANCE]
            found.setdefault(name, set()).add(s.name_of(pod))
    return found


def test_instances_of_two_pods_serve_what_one_process_would(
    multi: s.Cluster, aggregated: OpenAI
) -> None:
    found = instances(multi)
    assert found == {name: {name, f"{name}-m1"} for name in found} and len(found) == 3
    assert s.routed(multi, NAMESPACE, NAMESPACE) == set(found)
    prefills = s.pods(multi, NAMESPACE, role="prefill")
    assert len({pod["spec"]["nodeName"] for pod in prefills}) == 2
    (gateway,) = s.wait_gateways(multi, NAMESPACE, NAMESPACE, 1)
    through = client(multi.url(gateway))
    for number, prompt in enumerate(PROMPTS):
        sampling = (GREEDY, SEEDED)[number % 2]
        want = complete(aggregated, prompt, True, stream=False, **sampling)
        assert complete(through, prompt, True, stream=bool(number % 3), **sampling) == want, prompt
    for pod in s.pods(multi, NAMESPACE):
        if names.LABEL_MEMBER in pod["metadata"]["labels"] and s.name_of(pod).endswith("-m1"):
            info = fetch(multi.url(pod) + calls.PATH_INFO)
            assert '"layers":[2,4]' in info
            assert (
                '"steps":0,' not in info or pod["metadata"]["labels"][names.LABEL_ROLE] != "prefill"
            )


@pytest.mark.invariant(4)
@pytest.mark.parametrize("member", ["leader", "member"])
def test_a_member_that_is_killed_costs_one_instance(multi: s.Cluster, member: str) -> None:
    before, pods_before = instances(multi), s.identities(multi, NAMESPACE)
    decodes = sorted(
        s.name_of(p) for p in s.pods(multi, NAMESPACE, role="decode") if s.name_of(p) in before
    )
    victim = decodes[0]
    pod = victim if member == "leader" else f"{victim}-m1"
    with Following(multi, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(5)
        multi.kubectl("delete", "pod", pod, "-n", NAMESPACE, "--force", "--grace-period=0")
        fresh = s.wait_substituted(
            multi, NAMESPACE, GROUP, pods_before, {victim, f"{victim}-m1"}, WAIT
        )
        traffic.wait_more(5)
    assert traffic.errors == []
    (new,) = set(instances(multi)) - set(before)
    assert fresh == {new, f"{new}-m1"}
    change = s.difference(pods_before, s.identities(multi, NAMESPACE))
    assert (change.gone, change.new, change.restarted) == (before[victim], fresh, set())
    s.until("it is routed", lambda: new in s.routed(multi, NAMESPACE, NAMESPACE))


def test_a_member_that_restarts_in_place_joins_its_instance_again(multi: s.Cluster) -> None:
    before = s.identities(multi, NAMESPACE)
    (prefill,) = [n for n in instances(multi) if "-p" in n.removeprefix(GROUP)]
    multi.kill(NAMESPACE, f"{prefill}-m1")
    s.until("it left the routes", lambda: prefill not in s.routed(multi, NAMESPACE, NAMESPACE))
    s.until("it is routed again", lambda: prefill in s.routed(multi, NAMESPACE, NAMESPACE))
    s.wait_service(multi, NAMESPACE, NAMESPACE, WAIT)
    change = s.difference(before, s.identities(multi, NAMESPACE))
    assert change == s.Difference(set(), set(), {f"{prefill}-m1"})
    with Following(multi, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(5)
    assert traffic.errors == []
