"""Claims as ScenarioGroup status keeps them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.support.api_objects import scenariogroup

from pdserve.api import ScenarioGroup
from pdserve.api.scenariogroup import MAX_BESIDE
from pdserve.controllers.shared.device_claims import Claims, Rank
from pdserve.controllers.shared.parsed import parsed
from pdserve.controllers.shared.scope import Scope
from pdserve.desired.claim_entries import MOST_BESIDE, claims_of, from_json, to_json
from pdserve.frozen import Frozen
from pdserve.groups.types import DeviceClaim
from pdserve.kube.resource import Object, ObjectKey
from pdserve.placement import GroupRequest
from pdserve.placement.types import Shape
from pdserve.topology import pod_view
from pdserve.wire import names

NPU = "huawei.com/Ascend910"


def claim(number: int = 0, **amounts: int) -> DeviceClaim:
    takes = {NPU: 4, **{name.replace("_", "/"): n for name, n in amounts.items()}}
    pod, slot = f"shop-chat-0-p{number}-abcdef", f"shop-chat-0-p{number}"
    return DeviceClaim(pod, "uid", slot, "prefill", 0, "node-1", tuple(sorted(takes.items())))


def stored(*claims: DeviceClaim) -> ScenarioGroup:
    obj: Object = scenariogroup()
    obj["status"] = {"claims": to_json(claims)}
    return parsed(ScenarioGroup, Frozen(obj))


@pytest.mark.parametrize(
    "kept", [claim(), claim(cpu=500, memory=2**40, pods=1), claim(memory=1, **{"a.example_nic": 8})]
)
def test_status_keeps_all_that_a_pod_took(kept: DeviceClaim) -> None:
    assert claims_of(stored(kept)) == (kept,)
    assert [from_json(raw) for raw in to_json([kept])] == [kept]


def test_a_claim_of_an_operator_before_keeps_its_devices() -> None:
    (raw,) = to_json([claim(memory=5)])
    del raw["beside"]
    assert from_json(raw) == claim()


@pytest.mark.parametrize(
    "beside", [5, "many", [None], [{}], [{"resource": "memory", "amount": "1Gi"}], [["memory", 1]]]
)
def test_what_no_operator_wrote_is_no_claim(beside: object) -> None:
    (raw,) = to_json([claim()])
    assert from_json({**raw, "beside": beside}) is None


def test_status_has_room_for_the_devices_of_every_claim() -> None:
    """However many other resources a template names."""
    wide = {f"x{n:03}.example_{'a' * 60}": 1 for n in range(MAX_BESIDE + 10)}
    claims = [claim(n, **wide) for n in range(MOST_BESIDE // MAX_BESIDE + 50)]
    found = to_json(claims)
    assert len(found) == len(claims)
    assert sum(len(raw["beside"]) for raw in found) == MOST_BESIDE
    assert all(len(raw["beside"]) <= MAX_BESIDE for raw in found)
    assert len(claims_of(stored(*claims))) == len(claims)


def test_claims_of_one_slot_keep_the_order_in_which_status_names_them() -> None:
    """The planner takes the last one for the newest."""
    newer = replace(claim(), pod="shop-chat-0-p0-000000")
    assert Claims(Scope()).of(stored(claim(), newer)) == (claim(), newer)


def test_a_plan_looks_for_places_of_the_first_hundred_that_wait() -> None:
    claims = Claims(Scope())
    for n in range(150):
        rank = Rank(0, f"{150 - n:03}", "team", f"g{n}")
        claims.waits(ObjectKey("team", f"g{n}"), "az1", rank, request(n + 1))
    last = Rank(1, "", "default", "late")
    assert claims.ahead("az1", last) == tuple(request(n + 1) for n in range(149, 49, -1))
    assert claims.ahead("another", last) == ()


def request(devices: int) -> GroupRequest:
    shape = Shape(NPU, devices)
    return GroupRequest(1, 1, shape, shape)


def test_what_is_noted_while_a_plan_is_carried_out_is_not_decided_by_it() -> None:
    """The pod of a claim that the plan saw ends meanwhile, or ends again under the same name."""
    claims, group = Claims(Scope()), stored()
    ended(claims, "u1")
    noted = claims.noted(group)
    ended(claims, "u2")
    claims.decided(group, noted)
    assert [c.uid for c in claims.of(group)] == ["u2"]
    claims.decided(group, claims.noted(group))
    assert claims.of(group) == ()


def ended(claims: Claims, uid: str) -> None:
    """The cache drops a pod of the stored ScenarioGroup that took devices."""
    group = stored()
    owner = {"kind": "ScenarioGroup", "name": group.metadata.name, "uid": "g", "controller": True}
    labels = {names.LABEL_ROLE: "prefill", names.LABEL_GROUP_INDEX: "0"}
    limits = {"limits": {NPU: "4"}}
    pod = {
        "metadata": {
            "name": claim().pod, "namespace": group.metadata.namespace, "uid": uid,
            "labels": labels, "ownerReferences": [owner],
        },
        "spec": {"nodeName": "node-1", "containers": [{"name": "engine", "resources": limits}]},
    }  # fmt: skip
    claims.pod_changed("DELETED", pod_view(pod), None)
