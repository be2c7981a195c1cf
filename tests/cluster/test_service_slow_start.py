"""A prefill that takes long to start costs its decodes nothing (K5.6)."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator

import pytest
from tests.support import scenarios as s
from tests.support.groups_at_rest import check_groups
from tests.support.installed import (
    Installed,
    fixed,
    make_namespace,
    pdservice,
    role,
    scenario,
)

from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.invariant(4), pytest.mark.timeout(600)]

NAMESPACE = "slow-start"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
START_SECONDS = 45
"""The prefill's engine runs for so long before it answers."""
DEADLINE = 20
"""`startupDeadlineSeconds` of the decodes: they answer long before, but cannot be Ready."""
WAIT = 240.0


def slow_engine() -> s.Json:
    """The engine's own command, later. Where it is differs between images and process nodes."""
    python = f'"$(command -v /opt/pdserve/bin/python || echo {sys.executable})"'
    script = f'sleep {START_SECONDS}; exec {python} -m pdserve.refengine "$@"'
    return {"name": "engine", "command": ["sh", "-c", script, "sh"]}


@pytest.fixture
def here(installed: Installed) -> Iterator[s.Cluster]:
    make_namespace(installed.cluster, NAMESPACE)
    yield installed.cluster
    installed.cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=false")


def answering(cluster: s.Cluster, name: str) -> dict[str, str]:
    """Names and uids of the role's instances whose engines answer."""
    return {
        s.name_of(pod): pod["metadata"]["uid"]
        for pod in s.pods(cluster, NAMESPACE, role=name)
        for status in pod.get("status", {}).get("containerStatuses", ())
        if status["name"] == "engine" and status.get("started")
    }


def test_a_slow_prefill_leaves_its_decodes_untouched(here: s.Cluster) -> None:
    template = {"spec": {"containers": [slow_engine()]}}
    document = pdservice(
        NAMESPACE,
        NAMESPACE,
        scenario("chat", fixed(1, 1, 2)),
        prefill=role(slots=4) | {"template": template, "startupDeadlineSeconds": 600},
        decode=role(slots=16) | {"startupDeadlineSeconds": DEADLINE},
    )
    here.apply(document, namespace=NAMESPACE)
    s.until("both decodes answer", lambda: len(answering(here, "decode")) == 2, WAIT)
    began, decodes = time.monotonic(), answering(here, "decode")
    assert answering(here, "prefill") == {}, "the prefill is slow"
    s.until("the prefill answers", lambda: answering(here, "prefill"), WAIT)
    waited = time.monotonic() - began
    assert waited > 1.5 * DEADLINE, "the decodes waited for longer than their deadline"
    s.wait_service(here, NAMESPACE, NAMESPACE, WAIT)
    s.wait_settled(here, NAMESPACE, GROUP, WAIT)
    found = s.identities(here, NAMESPACE)
    assert {name: found[name].uid for name in decodes if name in found} == decodes
    assert [found[name].restarts for name in decodes] == [0, 0]
    assert len(s.pods(here, NAMESPACE)) == 3
    path = f"/apis/pdserve.io/v1alpha1/namespaces/{NAMESPACE}/scenariogroups/{GROUP}"
    status = (here.get(path) or {})["status"]
    assert status.get("repairs", []) == []
    check_groups(here, NAMESPACE, GROUP)
