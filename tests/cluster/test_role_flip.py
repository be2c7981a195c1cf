"""An instance takes the other role while clients use the service, beside the move by a new pod."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest
from tests.support import scenarios as s
from tests.support.following import Following
from tests.support.installed import (
    Installed,
    fixed,
    make_namespace,
    pdservice,
    role,
    scenario,
)
from tests.support.traffic import MODEL, client

from pdserve.controllers.shared import event_reasons as reasons
from pdserve.wire import names
from pdserve.wire.calls import HEADER_PREFILL

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAMESPACE = "flips"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
WAIT = 180.0
Record = Callable[[str, object], None]


@pytest.fixture
def here(installed: Installed) -> Iterator[s.Cluster]:
    make_namespace(installed.cluster, NAMESPACE)
    yield installed.cluster
    installed.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


class Service:
    """PDService flips/flips with one P/D group."""

    def __init__(self, cluster: s.Cluster) -> None:
        self.cluster = cluster

    def apply(self, prefill: int, decode: int, *, alike: bool) -> None:
        """Counts; `alike`: the pods of both roles differ in the role alone, so they can flip."""
        deadline = 60 if alike else 61
        bounds = {each: {"min": 1, "max": 4} for each in ("prefill", "decode")}
        document = pdservice(
            NAMESPACE,
            NAMESPACE,
            scenario("chat", {**fixed(1, prefill, decode), **bounds}),
            prefill=role(slots=4),
            decode=role(slots=16) | {"startupDeadlineSeconds": deadline},
            recovery={"drainSeconds": 30, "nodeSuspectSeconds": 5},
        )
        document["spec"]["gateway"] = {**document["spec"].get("gateway", {}), "replicas": 1}
        self.cluster.apply(document, namespace=NAMESPACE)

    def wait(self) -> None:
        """Until nothing goes on."""
        s.wait_service(self.cluster, NAMESPACE, NAMESPACE, WAIT)
        s.wait_settled(self.cluster, NAMESPACE, GROUP, WAIT)

    def roles(self) -> dict[str, str]:
        """Role by the uid of each pod that stays."""
        found = s.pods(self.cluster, NAMESPACE)
        return {
            p["metadata"]["uid"]: p["metadata"]["labels"][names.LABEL_ROLE]
            for p in found
            if not s.leaving(p)
        }

    def prefills(self) -> set[str]:
        """Their names."""
        return {s.name_of(p) for p in s.pods(self.cluster, NAMESPACE, role="prefill")}

    def seconds_until_a_new_prefill_answers(self, known: set[str], since: float) -> float:
        """From `since` until a client's first token comes by a prefill that is not `known`."""
        (gateway,) = s.gateways(self.cluster, NAMESPACE, NAMESPACE)
        api = client(self.cluster.url(gateway))
        for turn in range(10_000):
            raw = api.completions.with_raw_response.create(
                model=MODEL, prompt=f"Which role is this? {turn}", max_tokens=1
            )
            if raw.headers[HEADER_PREFILL] not in known:
                return time.monotonic() - since
            assert time.monotonic() - since < WAIT, "no new prefill answers"
        raise AssertionError("no new prefill answers")


def move(service: Service, prefill: int, decode: int, *, alike: bool) -> tuple[float, list[str]]:
    """Change the counts under load; seconds to the first token in the new role, and errors."""
    known = service.prefills()
    with Following(service.cluster, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(5)
        since = time.monotonic()
        service.apply(prefill, decode, alike=alike)
        seconds = service.seconds_until_a_new_prefill_answers(known, since)
        service.wait()
        traffic.wait_more(10)
    return seconds, traffic.errors


@pytest.mark.invariant(2)
@pytest.mark.invariant(5)
def test_role_flip_under_load(here: s.Cluster, record_property: Record) -> None:
    """role flip under load: 0 failed requests; time from decision to first token in the new role,
    printed beside the same move by pod restart (delete + create).
    """
    service = Service(here)
    service.apply(2, 4, alike=True)
    service.wait()
    before, identities = service.roles(), s.identities(here, NAMESPACE)
    flip, errors = move(service, 3, 3, alike=True)
    after = service.roles()
    assert errors == []
    assert set(after) == set(before), "every pod stayed"
    assert sorted(after.values()) == ["decode"] * 3 + ["prefill"] * 3
    assert s.difference(identities, s.identities(here, NAMESPACE)).restarted == set()
    assert len(s.events(here, NAMESPACE, reasons.FLIPPED)) == 1
    _restart_keeps_the_new_role(service, before)

    service.apply(2, 4, alike=False)
    service.wait()
    other = service.roles()
    restart, errors = move(service, 3, 3, alike=False)
    assert errors == []
    assert len(set(other) - set(service.roles())) == 1, "one was deleted"
    record_property("seconds_by_flip", round(flip, 2))
    record_property("seconds_by_restart", round(restart, 2))
    print(f"\nrole flip: {flip:.2f} s, delete + create: {restart:.2f} s to the first token")


def _restart_keeps_the_new_role(service: Service, before: dict[str, str]) -> None:
    """An engine that restarts after a flip comes back in the role of its label, not the first."""
    cluster = service.cluster
    (flipped,) = (
        p for p in s.pods(cluster, NAMESPACE)
        if before[p["metadata"]["uid"]] != p["metadata"]["labels"][names.LABEL_ROLE]
    )  # fmt: skip
    name = s.name_of(flipped)
    restarts = s.identities(cluster, NAMESPACE)[name]
    cluster.kill(NAMESPACE, name)
    s.until("it restarts", lambda: s.identities(cluster, NAMESPACE).get(name) != restarts, WAIT)
    service.wait()
    assert name in s.routed(cluster, NAMESPACE, NAMESPACE)
    assert name in service.prefills()
