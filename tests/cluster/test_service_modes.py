"""Who sets the counts: each ratio mode, and that a change of the template or the service's end
reaches everything below."""

from __future__ import annotations

import json
from collections.abc import Iterator

import openai
import pytest
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups
from tests.support.installed import (
    Installed,
    fixed,
    make_namespace,
    pdservice,
    ratio,
    role,
    scenario,
)
from tests.support.traffic import MODEL, Traffic, client

from pdserve.wire import names

pytestmark = pytest.mark.cluster

NAMESPACE = "modes"
GROUP = names.scenario_group_name(NAMESPACE, "only")
ONLY = {"x-scenario": "only"}
PACED = ["--paced", "demo-small", "--pace-factor", "4"]
"""Prefill of a prompt of `Traffic` takes 0.11 s at least, on whatever machine."""
HURRIED = {"ttft": "500ms", "handoff": "30s", "tpot": "5s", "attainmentPercent": 90}
"""A request alone is in time. But two prefills of one slot each answer 18 a second at most, and
`CROWD` clients that give up after 0.5 s ask for more than 50."""
CROWD = 32


class Service:
    """PDService modes/modes with one scenario, and what the test says about it."""

    def __init__(self, cluster: s.Cluster) -> None:
        self.cluster = cluster
        self.document = pdservice(
            NAMESPACE,
            NAMESPACE,
            scenario("only", fixed(1, 1, 1), match={"headers": ONLY}),
            prefill=role(slots=1) | {"args": PACED},
            # Also how long a pod may take that is deleted before it can hear it (grace: +15 s).
            recovery={"drainSeconds": 1, "nodeSuspectSeconds": 30},
        )

    def change(self, **fields: object) -> None:
        """Replace fields of the scenario and apply."""
        self.document["spec"]["scenarios"][0] |= fields
        self.cluster.apply(self.document, namespace=NAMESPACE)

    def counts(self) -> tuple[int, int, int]:
        """What the ScenarioGroup asks for."""
        return s.counts(self.cluster, NAMESPACE, GROUP)

    def fix(self, *counts: int) -> None:
        """Mode Fixed with these counts and an SLO that is easily met; returns when settled."""
        wide = scenario("only", fixed(*counts))
        self.change(**{field: wide[field] for field in ("ratio", "slo", "groups")})
        self.wait_counts(*counts)

    def decisions(self) -> list[s.Json]:
        """What was decided about its counts, oldest first."""
        return s.decisions(self.cluster, NAMESPACE, GROUP)

    def advice_available(self) -> bool:
        """Whether its status says that there is advice."""
        found = s.service(self.cluster, NAMESPACE, NAMESPACE)
        return bool(s.condition(found, "AdviceAvailable").get("status") == "True")

    def wait_counts(self, *wanted: int, seconds: float = 30.0) -> None:
        """Until the ScenarioGroup asks for these and has them."""
        s.until(f"counts {wanted}", lambda: self.counts() == wanted, seconds)
        s.wait_settled(self.cluster, NAMESPACE, GROUP)
        check_groups(self.cluster, NAMESPACE, GROUP)

    def merge(self, patch: s.Json) -> None:
        """A person's `kubectl patch` of the ScenarioGroup."""
        self.cluster.kubectl(
            "patch", "psg", GROUP, "-n", NAMESPACE, "--type=merge", "-p", json.dumps(patch)
        )

    def url(self) -> str:
        """Its gateway."""
        (gateway,) = s.wait_gateways(self.cluster, NAMESPACE, NAMESPACE, 1)
        return self.cluster.url(gateway)


@pytest.fixture(scope="module")
def service(installed: Installed) -> Iterator[Service]:
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    made = Service(cluster)
    made.change()
    s.wait_service(cluster, NAMESPACE, NAMESPACE)
    yield made
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def test_the_answer_to_a_request_of_no_scenario_names_the_known_ones(service: Service) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        client(service.url(), {"x-scenario": "other"}).completions.create(model=MODEL, prompt="x")
    assert "no scenario takes model 'pdserve-tiny' with these headers" in str(caught.value)
    assert "x-scenario: only" in str(caught.value)


@pytest.mark.invariant(2)
def test_fixed_counts_are_followed_and_kept(service: Service) -> None:
    service.fix(1, 1, 1)
    before = s.identities(service.cluster, NAMESPACE)
    service.fix(1, 2, 1)
    change = s.difference(before, s.identities(service.cluster, NAMESPACE))
    assert (change.gone, change.restarted, len(change.new)) == (set(), set(), 1)
    applied = [d for d in service.decisions() if d["outcome"] == "Applied"][-1]
    assert applied["reason"] == "FixedCounts"
    assert applied["to"] == {"groups": 1, "prefill": 2, "decode": 1}


def test_auto_undoes_a_hand_edit_and_says_so(service: Service) -> None:
    service.fix(1, 2, 1)
    service.change(ratio=ratio("Auto") | {"prefill": {"min": 2, "max": 2}})
    s.until(
        "the change of mode is read",
        lambda: s.is_ready(s.service(service.cluster, NAMESPACE, NAMESPACE)),
    )
    assert service.counts() == (1, 2, 1), "a change of mode keeps the counts"
    before = s.identities(service.cluster, NAMESPACE)
    service.merge({"spec": {"decode": {"replicas": 3}}})
    said = s.until(
        "an Event about the hand edit",
        lambda: s.events(service.cluster, NAMESPACE, "CountsPutBack"),
    )
    assert "1x(2P3D) by hand" in said[0]["note"]
    assert "put back to 1x(2P1D)" in said[0]["note"]
    service.wait_counts(1, 2, 1)
    change = s.difference(before, s.identities(service.cluster, NAMESPACE))
    assert change.gone == set() and change.restarted == set()


def test_external_lets_the_scale_subresource_decide(service: Service) -> None:
    service.fix(1, 2, 1)
    service.change(ratio=ratio("External"))
    s.until(
        "the change of mode is read",
        lambda: s.is_ready(s.service(service.cluster, NAMESPACE, NAMESPACE)),
    )
    before = s.identities(service.cluster, NAMESPACE)
    service.cluster.kubectl("scale", "psg", GROUP, "-n", NAMESPACE, "--replicas=2")
    service.wait_counts(2, 2, 1)
    service.cluster.kubectl("scale", "psg", GROUP, "-n", NAMESPACE, "--replicas=1")
    service.wait_counts(1, 2, 1)
    after = s.identities(service.cluster, NAMESPACE)
    assert s.difference(before, after) == s.Difference(set(), set(), set())


@pytest.mark.timeout(600)  # two waits of three minutes, on a busy machine
def test_advise_tells_and_does_nothing_then_auto_does_it(service: Service) -> None:
    service.fix(1, 2, 1)

    def wait_growth(outcome: str) -> None:
        """Until a decision of this outcome wants the one prefill more that bounds allow."""
        s.until(
            f"growth {outcome}",
            lambda: any(
                (d["outcome"], d["to"]["groups"], d["to"]["prefill"]) == (outcome, 1, 3)
                for d in service.decisions()
            ),
            180,
            instead=lambda: json.dumps(service.decisions(), indent=1),
        )

    one_group = {"groups": {"min": 1, "max": 1}}
    service.change(ratio=ratio("Advise"), slo=HURRIED, **one_group)
    with Traffic([service.url()], ONLY, workers=CROWD, max_tokens=2):
        wait_growth("Advised")
        assert service.counts() == (1, 2, 1)
        s.until("condition AdviceAvailable", service.advice_available)
        assert service.counts() == (1, 2, 1)
        service.change(ratio=ratio("Auto"))
        wait_growth("Applied")
        s.until("counts follow", lambda: service.counts()[:2] == (1, 3))


def test_a_field_taken_out_of_the_template_leaves_every_instance(service: Service) -> None:
    cluster, spec = service.cluster, service.document["spec"]
    service.fix(1, 1, 1)
    spec["decode"]["env"] = [{"name": "NOTE", "value": "here"}]
    service.change()

    def notes() -> list[bool]:
        return [
            any(e["name"] == "NOTE" for e in pod["spec"]["containers"][0]["env"])
            for pod in s.pods(cluster, NAMESPACE, role="decode")
            if not s.leaving(pod)
        ]

    s.until("instances have the variable", lambda: notes() == [True])
    s.wait_settled(cluster, NAMESPACE, GROUP)
    del spec["decode"]["env"]
    service.change()
    s.until("instances have it no more", lambda: notes() == [False])
    assert "env" not in (s.group(cluster, NAMESPACE, GROUP) or {})["spec"]["decode"]
    s.wait_settled(cluster, NAMESPACE, GROUP)
    check_groups(cluster, NAMESPACE, GROUP)


def test_the_end_of_a_service_is_the_end_of_all_it_made(service: Service) -> None:
    cluster = service.cluster
    obj, found = s.service(cluster, NAMESPACE, NAMESPACE), s.group(cluster, NAMESPACE, GROUP)
    assert obj is not None and found is not None
    for each in (obj, found, *s.pods(cluster, NAMESPACE)):
        assert not each["metadata"].get("finalizers"), "nothing may hold up a deletion"
    cluster.kubectl("delete", "pds", NAMESPACE, "-n", NAMESPACE, "--wait=false")
    kinds = "psg,pods,configmaps,secrets,services,deployments,serviceaccounts,roles,rolebindings"
    selector = f"{names.LABEL_SERVICE}={NAMESPACE}"

    def left() -> str:
        return cluster.kubectl("get", kinds, "-n", NAMESPACE, "-l", selector, "-o", "name")

    s.until("nothing is left", lambda: not left().strip())
