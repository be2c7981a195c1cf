"""Rollouts as people steer them, under traffic: no request fails and the ratio is kept.

Pause, canary, undo, a revert in the middle, and a full fabric where old groups go first.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress

import pytest
from tests.cluster.test_operator_room import free_nodes
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
from urllib3.exceptions import HTTPError

from pdserve.wire import names

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

NAMESPACE = "rollouts"
GROUP = names.scenario_group_name(NAMESPACE, "chat")
WAIT = 120.0
GROUPS = 3
PROGRAM = "import sys; from pdserve.cli.kubectl import main; sys.exit(main())"


class Rolled:
    """PDService rollouts/rollouts, and `kubectl pdserve rollout` on it."""

    def __init__(self, cluster: s.Cluster, ratio: s.Json, devices: int = 1) -> None:
        self.cluster, self.fixed = cluster, ratio["fixed"]
        self.document = pdservice(
            NAMESPACE, NAMESPACE,
            scenario("chat", ratio, groups={"min": 1, "max": 8}),
            prefill=role(slots=4, devices=devices), decode=role(slots=16, devices=devices),
        )  # fmt: skip

    def apply(self, version: str, **rollout: object) -> None:
        """The template of this version, rolled so."""
        spec = self.document["spec"]
        spec["decode"]["env"] = [{"name": "VERSION", "value": version}]
        spec["rollout"] = rollout
        self.cluster.apply(self.document, namespace=NAMESPACE)

    def rollout(self, verb: str, *more: str) -> str:
        """Output of `kubectl pdserve rollout VERB`; it must end well."""
        command = [sys.executable, "-c", PROGRAM, "rollout", verb, NAMESPACE, "-n", NAMESPACE]
        done = subprocess.run(
            [*command, "--kubeconfig", str(self.cluster.kubeconfig), *more],
            capture_output=True, text=True, check=False, timeout=WAIT + 30,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def status(self) -> s.Json:
        """Of its scenario, as JSON."""
        (found,) = json.loads(self.rollout("status", "-o", "json"))
        return dict(found)

    def wait_phase(self, phase: str, updated: int) -> None:
        """Until the rollout is there."""

        def there() -> bool:
            now = self.status()
            return (now["phase"], now["updatedGroups"]) == (phase, updated)

        s.until(f"{phase} at {updated}", there, WAIT, instead=self.status)

    def wait_complete(self) -> None:
        """Until all groups serve at the wanted revision, and nothing goes on."""
        self.rollout("status", "--watch", "--timeout", str(WAIT))
        s.wait_service(self.cluster, NAMESPACE, NAMESPACE, WAIT)
        s.wait_settled(self.cluster, NAMESPACE, GROUP, WAIT)

    def versions(self) -> dict[str, str]:
        """The version of every decode that stays, by uid."""
        return {
            p["metadata"]["uid"]: next(
                e["value"] for e in p["spec"]["containers"][0]["env"] if e["name"] == "VERSION"
            )
            for p in s.pods(self.cluster, NAMESPACE, role="decode")
            if not s.leaving(p)
        }

    def traffic(self) -> Following:
        return Following(self.cluster, NAMESPACE, NAMESPACE)


class Ratio:
    """The fewest whole P/D groups that gateways ever knew while the block runs."""

    def __init__(self, rolled: Rolled) -> None:
        self._rolled, self._over = rolled, threading.Event()
        self.fewest = 1 << 20
        self.samples = 0

    def __enter__(self) -> Ratio:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(WAIT)
        assert self.samples

    def _watch(self) -> None:
        routes = names.routes_configmap_name(NAMESPACE)
        while not self._over.wait(0.1):
            with suppress(HTTPError, AssertionError):
                table = s.table(self._rolled.cluster, NAMESPACE, routes, names.KEY_ROUTES)
                groups = [g for each in table["scenarios"] for g in each["groups"]]
                self.fewest = min(self.fewest, sum(map(self._whole, groups)))
                self.samples += 1

    def _whole(self, group: s.Json) -> bool:
        roles = [i["role"] for i in group["instances"]]
        wanted = self._rolled.fixed
        return all(roles.count(r) == wanted[r] for r in ("prefill", "decode"))


@pytest.fixture
def site(installed: Installed) -> Iterator[s.Cluster]:
    """The cluster, with a namespace of its own, which is gone afterwards."""
    cluster = installed.cluster
    make_namespace(cluster, NAMESPACE)
    yield cluster
    cluster.kubectl("delete", "namespace", NAMESPACE, "--wait=true", "--timeout=120s")


@pytest.mark.invariant(3)
@pytest.mark.invariant(7)
def test_pause_canary_undo_and_a_revert_in_the_middle_fail_no_request(site: s.Cluster) -> None:
    rolled = Rolled(site, fixed(GROUPS, 1, 2))
    rolled.apply("1")
    rolled.wait_complete()
    with rolled.traffic() as traffic, Ratio(rolled) as ratio:
        traffic.wait_more(10)
        # A canary: one P/D group, and no further one until it is resumed.
        first = rolled.versions()
        rolled.apply("2", canaryGroups=1)
        rolled.wait_phase("CanaryWaits", 1)
        traffic.wait_more(20)
        assert sorted(rolled.versions().values()) == ["1"] * 4 + ["2"] * 2
        assert "decode.env" in rolled.rollout("history")
        # Undo: the canary goes, and what still ran version 1 is untouched.
        left = {uid for uid, version in rolled.versions().items() if version == "1"}
        text = rolled.rollout("undo", "--dry-run")
        assert '"2"' in text and rolled.status()["phase"] == "CanaryWaits"
        rolled.rollout("undo")
        rolled.wait_complete()
        assert set(rolled.versions().values()) == {"1"}
        assert left <= rolled.versions().keys() and left < first.keys()
        # Paused in the middle nothing changes, and reverted there nothing old goes.
        rolled.apply("3", canaryGroups=2)
        rolled.wait_phase("CanaryWaits", 2)
        rolled.rollout("pause")
        rolled.wait_phase("RolloutPaused", 2)
        paused = rolled.versions()
        traffic.wait_more(40)
        assert rolled.versions() == paused
        rolled.apply("1")
        rolled.wait_phase("RolloutPaused", 1)
        assert rolled.versions() == paused
        rolled.rollout("resume")
        rolled.wait_complete()
        old = {uid for uid, version in paused.items() if version == "1"}
        assert len(old) == 2 and old <= rolled.versions().keys()
        # Past its canary to the end.
        rolled.apply("4", canaryGroups=2)
        rolled.wait_phase("CanaryWaits", 2)
        rolled.rollout("resume")
        rolled.wait_complete()
        assert set(rolled.versions().values()) == {"4"}
        traffic.wait_more(10)
    assert traffic.errors == []
    assert ratio.fewest >= GROUPS, "a new group is whole before an old one goes"


@pytest.mark.invariant(3)
def test_where_the_fabric_is_full_old_groups_go_first_and_no_request_fails(
    site: s.Cluster,
) -> None:
    groups = len(free_nodes(site)) // 2
    assert groups >= 2, "the test needs four free nodes"
    rolled = Rolled(site, fixed(groups, 1, 1), devices=8)
    rolled.apply("1")
    rolled.wait_complete()
    with rolled.traffic() as traffic, Ratio(rolled) as ratio:
        traffic.wait_more(10)
        rolled.apply("2")
        rolled.wait_complete()
        traffic.wait_more(10)
    assert set(rolled.versions().values()) == {"2"}
    assert traffic.errors == []
    assert ratio.fewest == groups - 1, "one group at a time"
