"""What is promised and claimed counts once, while no pod holds it, whatever happened before."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest

from pdserve.controllers.shared.caches import Caches, make_caches
from pdserve.controllers.shared.device_claims import Claims
from pdserve.controllers.shared.fabrics import Fabrics
from pdserve.controllers.shared.promises import FAILED_SECONDS, Promises
from pdserve.controllers.shared.scope import Scope
from pdserve.controllers.shared.taken import Taken
from pdserve.desired.claim_entries import to_json
from pdserve.dst.api_server import FakeApi
from pdserve.exposition import Registry
from pdserve.groups.types import DeviceClaim
from pdserve.kube.errors import KubeError
from pdserve.kube.resource import ObjectKey
from pdserve.topology import FabricLevel, Reservation
from pdserve.topology.spec import TreeSpec

NPU = "example.com/npu"
SPEC = TreeSpec("az1", (FabricLevel("leaf", "leaf", 1),))
GROUPS = tuple(ObjectKey(ns, name) for ns in ("mart", "team") for name in ("chat", "code"))
SLOTS = tuple(range(3))
SIZE = 2


class Site:
    """Caches into which objects are put by hand, and all that counts on them."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 0.0
        self.caches: Caches = make_caches(FakeApi().client(), None, Registry(), lambda *_: None)
        self.fabrics = Fabrics(self.caches)
        self.scope = Scope()
        self.claims = Claims(self.scope)
        self.promises = Promises(lambda: self.now)
        self.caches.pods.on_change(self.claims.pod_changed)
        self.caches.groups.on_change(self.claims.group_changed)
        self.caches.groups.on_change(self.promises.group_changed)
        self.taken = Taken(self.caches, self.fabrics, self.claims, self.promises)
        self.version = 1
        self.held: dict[ObjectKey, Any] = {}
        for number in range(4):
            status = {
                "allocatable": {NPU: "64"},
                "conditions": [{"type": "Ready", "status": "True"}],
            }
            node = {"metadata": {"name": f"n{number}", "labels": {"leaf": "a"}}, "status": status}
            self.put(self.caches.nodes, node)

    def put(self, cache: Any, obj: dict[str, Any]) -> None:
        self.version += 1
        obj["metadata"] |= {"uid": obj["metadata"]["name"], "resourceVersion": str(self.version)}
        cache.observe(obj)

    def pod(self, key: ObjectKey, slot: int) -> str:
        return f"{key.name}-0-p{slot}-a"

    # --- what happens ---

    def group(self, key: ObjectKey) -> None:
        """Status names claims, others than before."""
        chosen = [s for s in SLOTS if self.rng.random() < 0.5]
        claims = [
            DeviceClaim(
                self.pod(key, s), "u", f"{key.name}-0-p{s}", "prefill", 0,
                f"n{self.rng.randrange(4)}", ((NPU, SIZE),),
            )
            for s in chosen
        ]  # fmt: skip
        meta = {"name": key.name, "namespace": key.namespace}
        spec = {"service": "x", "fabric": {"domainRef": {"name": "az1"}}}
        self.put(
            self.caches.groups,
            {"metadata": meta, "spec": spec, "status": {"claims": to_json(claims)}},
        )

    def bind(self, key: ObjectKey) -> None:
        """A pod appears, or ends."""
        name = self.pod(key, self.rng.choice(SLOTS))
        limits = {"limits": {NPU: str(SIZE)}}
        owner = {"kind": "ScenarioGroup", "name": key.name, "uid": "g", "controller": True}
        labels = {"pdserve.io/role": "prefill", "pdserve.io/group-index": "0"}
        self.put(
            self.caches.pods,
            {
                "metadata": {
                    "name": name, "namespace": key.namespace, "labels": labels,
                    "ownerReferences": [owner],
                },
                "spec": {
                    "nodeName": f"n{self.rng.randrange(4)}",
                    "containers": [{"name": "engine", "resources": limits}],
                },
                "status": {"phase": self.rng.choice(("Running", "Failed"))},
            },
        )  # fmt: skip

    def attempt(self, key: ObjectKey) -> None:
        """Promises are made, or an attempt ends well, badly or with a refusal."""
        held = self.held.pop(key, None)
        if held is None:
            asked = [
                Reservation(self.pod(key, s), f"n{self.rng.randrange(4)}", NPU, SIZE)
                for s in SLOTS
                if self.rng.random() < 0.5
            ]
            self.promises.plans_anew(key)
            self.held[key] = self.promises.held(key, asked)
            self.held[key].__enter__()
            return
        errors = KubeError(500, "InternalError", "x"), KubeError(403, "Forbidden", "x")
        error = self.rng.choice((None, *errors))
        held.__exit__(type(error) if error else None, error, None)

    def decide(self, key: ObjectKey) -> None:
        """Status has taken over what was noted of lost pods."""
        group = type("Group", (), {"metadata": type("M", (), vars_of(key))})
        self.claims.decided(group, self.claims.noted(group))  # type: ignore[arg-type]  # its key is read

    def leave(self, key: ObjectKey) -> None:
        """A namespace goes to another operator, or comes back."""
        self.scope.leave({} if self.rng.random() < 0.7 else {key.namespace: "another"})
        self.taken.everything_changed()

    def wait(self, _key: ObjectKey) -> None:
        self.now += self.rng.uniform(0, FAILED_SECONDS)

    # --- what must come of it ---

    def expected(self) -> Counter[str]:
        """Devices taken by node, counted from nothing."""
        found: Counter[str] = Counter()
        for view in self.caches.pods.list():
            found[view.place] += view.devices.get(NPU, 0)
        for key in GROUPS:
            promised = self.promises.of(key)
            shown = {r.pod: self.caches.pods.get(r.pod, key.namespace) for r in promised}
            for r in promised:
                found[r.node] += 0 if shown[r.pod] is not None else r.devices
            for r in self.claims.reservations(key, self.caches):
                pod = self.caches.pods.get(r.pod, key.namespace)
                counts = r.pod not in shown and not (pod is not None and pod.devices)
                found[r.node] += r.devices if counts and r.resource == NPU else 0
        return found


def vars_of(key: ObjectKey) -> dict[str, str]:
    return {"namespace": key.namespace, "name": key.name}


@pytest.mark.parametrize("seed", range(8))
def test_every_device_counts_once_after_any_history(seed: int) -> None:
    rng = random.Random(seed)
    site = Site(rng)
    kinds = (
        site.group,
        site.bind,
        site.bind,
        site.attempt,
        site.attempt,
        site.decide,
        site.wait,
        site.leave,
    )
    for _ in range(150):
        rng.choice(kinds)(rng.choice(GROUPS))
        if rng.random() < 0.6:  # several changes may come between two questions
            fabric = site.taken.fabric(SPEC)
            free = {n: 64 - fabric.free(n, NPU) for n in fabric.nodes}
            wanted = site.expected()
            assert free == {n: wanted[n] for n in fabric.nodes}
