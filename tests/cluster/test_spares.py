"""A warm spare takes over from a lost decode, and from a lost prefill, beside a cold start."""

from __future__ import annotations

import sys
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

from pdserve.controllers.shared import event_reasons as reasons
from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAMESPACE = "spares"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
LOAD_SECONDS = 15
"""So long an engine takes before it begins to start, as one does that loads a large model."""
WAIT = 180.0
Record = Callable[[str, object], None]


@pytest.fixture
def here(installed: Installed) -> Iterator[s.Cluster]:
    make_namespace(installed.cluster, NAMESPACE)
    yield installed.cluster
    installed.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def slow_role(slots: int) -> s.Json:
    """A role whose engines load for `LOAD_SECONDS`; both roles alike but for their slots."""
    python = f'"$(command -v /opt/pdserve/bin/python || echo {sys.executable})"'
    script = f'sleep {LOAD_SECONDS}; exec {python} -m pdserve.refengine "$@"'
    engine = {"name": "engine", "command": ["sh", "-c", script, "sh"]}
    template = {"spec": {"containers": [engine]}}
    return role(slots=slots) | {"template": template, "startupDeadlineSeconds": 120}


def apply(cluster: s.Cluster, spares: int) -> None:
    """2P2D in one P/D group, and so many spares."""
    document = pdservice(
        NAMESPACE,
        NAMESPACE,
        scenario("chat", fixed(1, 2, 2), spares=spares),
        prefill=slow_role(4),
        decode=slow_role(16),
        recovery={"drainSeconds": 30, "nodeSuspectSeconds": 5},
    )
    document["spec"]["gateway"] = {**document["spec"].get("gateway", {}), "replicas": 1}
    cluster.apply(document, namespace=NAMESPACE)


def wait(cluster: s.Cluster, spares: int) -> None:
    """Until all serve, and all spares wait."""
    s.wait_service(cluster, NAMESPACE, NAMESPACE, WAIT)
    s.until("spares", lambda: spares_ready(cluster) == spares, WAIT)
    s.wait_settled(cluster, NAMESPACE, GROUP, WAIT)


def spares_ready(cluster: s.Cluster) -> int:
    found = s.group(cluster, NAMESPACE, GROUP)
    assert found is not None
    groups = found.get("status", {}).get("groups", ())
    return sum(g.get("spares", {}).get("ready", 0) for g in groups)


def routed(cluster: s.Cluster, of_role: str) -> set[str]:
    """Names of the instances of a role that gateways may use."""
    there = {s.name_of(p) for p in s.pods(cluster, NAMESPACE, role=of_role)}
    return there & s.routed(cluster, NAMESPACE, NAMESPACE)


def seconds_without(cluster: s.Cluster, of_role: str) -> tuple[float, set[str]]:
    """Lose one instance of a role; seconds until as many serve, and the one that was not there."""
    before = routed(cluster, of_role)
    (lost, *_) = sorted(before)
    with Following(cluster, NAMESPACE, NAMESPACE) as traffic:
        traffic.wait_more(5)
        began = time.monotonic()
        cluster.kubectl(
            "delete", "pod", lost, "-n", NAMESPACE, "--force", "--grace-period=0", "--wait=false"
        )

        def whole() -> bool:
            now = routed(cluster, of_role)
            return lost not in now and len(now) >= len(before)

        s.until("as many serve", whole, WAIT)
        seconds = time.monotonic() - began
        traffic.wait_more(5)
    assert traffic.errors == []
    return seconds, routed(cluster, of_role) - before


@pytest.mark.invariant(4)
def test_a_spare_takes_over_beside_a_cold_start(here: s.Cluster, record_property: Record) -> None:
    apply(here, 0)
    wait(here, 0)
    cold, _ = seconds_without(here, "decode")
    wait(here, 0)
    cold_prefill, _ = seconds_without(here, "prefill")

    apply(here, 1)
    wait(here, 1)
    kept = s.identities(here, NAMESPACE)
    warm, (took_over,) = seconds_without(here, "decode")
    assert took_over in kept, "it ran before"
    wait(here, 1)

    spare = {s.name_of(p) for p in s.pods(here, NAMESPACE, role="decode")} - routed(here, "decode")
    warm_prefill, (flipped,) = seconds_without(here, "prefill")
    assert {flipped} == spare
    assert len(s.events(here, NAMESPACE, reasons.FLIPPED)) == 1
    wait(here, 1)

    for name, value in (
        ("decode_cold", cold), ("decode_spare", warm),
        ("prefill_cold", cold_prefill), ("prefill_spare", warm_prefill),
    ):  # fmt: skip
        record_property(f"seconds_{name}", round(value, 2))
    print(
        f"\nuntil as many serve again, of an engine that loads {LOAD_SECONDS} s: decode "
        f"{warm:.2f} s by a spare, {cold:.2f} s cold; prefill {warm_prefill:.2f} s by a spare "
        f"that flips, {cold_prefill:.2f} s cold"
    )
    assert max(warm, warm_prefill) < LOAD_SECONDS <= min(cold, cold_prefill)
