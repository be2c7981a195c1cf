"""Rotation of a service's credentials: the order of steps, what it waits for, what it reports."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import itertools
from typing import Any

import pytest
from tests.unit.controllers.test_ownership_and_counts import make

from pdserve.controllers.shared.caches import PDSERVICES
from pdserve.desired.service_credentials import (
    Seen,
    ServiceCredentials,
    Terms,
    advance,
    control_digests,
    control_tokens,
    fresh,
    from_data,
    grant_of,
    to_data,
    told,
)
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.kube.resource import DEPLOYMENTS, PODS, SECRETS
from pdserve.kube.transport import KubeRequest
from pdserve.wire.credentials import fingerprint
from pdserve.wire.peers import Peer, PeerTable

NONE_SEEN = Seen((), (), ())


def numbers() -> Any:
    count = itertools.count(1)
    return lambda n: next(count).to_bytes(n, "big")


# --- the plan ----------------------------------------------------------------------------------


def test_three_steps_each_waiting_for_its_own() -> None:
    random = numbers()
    held = fresh(random)
    (control,), (request,), (kv,) = held.control, held.request, held.kv
    assert advance(held, "", NONE_SEEN, random) is None
    spread = advance(held, "r1", NONE_SEEN, random)
    assert spread is not None
    assert (spread.step, spread.rotation) == ("spread", "r1")
    for use, old in (("control", control), ("request", request), ("kv", kv)):
        first, second = getattr(spread, use)
        assert first == old, "the old one is sent until every instance takes the new one"
        assert second not in (control, request, kv)
    assert advance(spread, "r1", Seen(("p0",), (), ()), random) is None
    assert told(spread, "r1", Seen(("p0",), (), ())).message == "step 1 of 3: waiting for p0"  # type: ignore[union-attr]
    switch = advance(spread, "r1", Seen((), ("any gateway",), ()), random)
    assert switch is not None
    assert switch.step == "switch"
    assert switch.request == spread.request[::-1]
    assert advance(switch, "r1", Seen((), ("gw",), ()), random) is None
    assert advance(switch, "r1", Seen(("p0",), (), ()), random) is None
    done = advance(switch, "r1", NONE_SEEN, random)
    assert done is not None
    assert done.step == "settled"
    for use in ("control", "request", "kv"):
        assert getattr(done, use) == getattr(switch, use)[:1]
    assert advance(done, "r1", NONE_SEEN, random) is None, "once for each value"
    again = advance(done, "r2", NONE_SEEN, random)
    assert again is not None
    assert len({held.revision, spread.revision, switch.revision, done.revision}) == 4
    assert told(done, "", NONE_SEEN) is None
    assert told(done, "r1", NONE_SEEN).reason == "Rotated"  # type: ignore[union-attr]


def test_another_request_waits_for_the_end_of_the_one_that_is_on() -> None:
    random = numbers()
    spread = advance(fresh(random), "r1", NONE_SEEN, random)
    assert spread is not None
    switch = advance(spread, "r2", NONE_SEEN, random)
    assert switch is not None
    assert (switch.step, switch.rotation) == ("switch", "r1")


def test_the_shared_token_ends_with_the_first_rotation_that_leaves_no_instance_behind() -> None:
    random = numbers()
    held = dataclasses.replace(fresh(random), shared="old")
    assert advance(held, "", NONE_SEEN, random) is None, "no rotation was requested"
    rotated = dataclasses.replace(held, rotation="r1")
    late = Seen((), (), ("p0",))
    assert advance(rotated, "r1", late, random) is None
    condition = told(rotated, "r1", late)
    assert condition is not None
    assert (condition.status, condition.reason) == ("False", "OldInstances")
    assert "p0" in condition.message
    ended = advance(rotated, "r1", NONE_SEEN, random)
    assert ended is not None
    assert ended.shared == ""
    assert ended.control == held.control


def test_what_is_stored_is_what_is_read() -> None:
    held = ServiceCredentials(("a", "b"), ("c", "d"), ("e", "f"), "switch", "r1")
    assert from_data("s", to_data(held)) == held
    assert "shared" not in to_data(dataclasses.replace(held, shared="x"))
    for secret in "abcdef":
        assert f"'{secret}'" not in repr(held)


TABLE = PeerTable(
    "shop-chat-0",
    1,
    tuple(
        Peer(n, "prefill" if n[0] == "p" else "decode", f"http://{n}:1", f"{n}:2", "r")
        for n in ("p0", "p1", "d0", "d1")
    ),
)
TERMS = Terms("r", True, frozenset({"d1"}), frozenset({"d0", "d1"}))


def test_both_ends_of_a_pair_get_the_same_key_and_no_other_does() -> None:
    held = ServiceCredentials(("op",), ("gw",), ("kv", "kv-old"))
    grants = {p.id: grant_of(held, NS, p.id, TABLE, TERMS) for p in TABLE.instances}
    assert grants["p0"].peers["d0"].keys == grants["d0"].peers["p0"].keys
    assert len(grants["p0"].peers["d0"].keys) == 2
    shown = [k for g in grants.values() for p in g.peers.values() for k in p.keys]
    assert sorted({shown.count(k) for k in shown}) == [2]
    assert set(grants["p0"].peers) == {"d0", "d1"}
    assert grants["p0"].peers["d1"].legacy is True
    assert grants["p0"].peers["d0"].legacy is False
    assert grants["d0"].peers["p0"].legacy is None, "p0 has not said yet"
    elsewhere = grant_of(held, "other", "p0", TABLE, TERMS)
    assert elsewhere.peers["d0"].keys != grants["p0"].peers["d0"].keys


def test_a_control_token_is_of_one_instance() -> None:
    held = ServiceCredentials(("op",), ("gw",), ("kv",), shared="old")
    assert control_tokens(held, NS, "p0")[0] != control_tokens(held, NS, "p1")[0]
    assert control_tokens(held, NS, "p0")[-1] == "old", "tried last"
    assert control_digests(held, NS, "p0") == grant_of(held, NS, "p0", TABLE, TERMS).control


# --- the operator ------------------------------------------------------------------------------


def secret(world: World, name: str) -> dict[str, str]:
    found = world.get(SECRETS, name) or {"data": {}}
    return {k: base64.b64decode(v).decode() for k, v in found["data"].items()}


def ask(world: World, value: str) -> None:
    world.patch(PDSERVICES, NS, "shop", {"metadata": {"annotations": {"pdserve.io/rotate": value}}})


def rotated(world: World) -> bool:
    return world.condition(PDSERVICES, "shop", "CredentialsRotated").get("status") == "True"


def gateway_pods(world: World) -> list[dict[str, Any]]:
    def component(pod: dict[str, Any]) -> str:
        return str(pod["metadata"].get("labels", {}).get("app.kubernetes.io/component"))

    return [pod for pod in world.seen(PODS) if component(pod) == "gateway"]


@virtual_time
async def test_the_operator_rotates_on_its_own_and_restarts_no_instance() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        assert world.get(SECRETS, "shop-token") is None, "no shared token for a new service"
        before, uids = secret(world, "shop-credentials"), _uids(world)
        assert secret(world, "shop-request") == {"request": before["request"]}
        ask(world, "1")
        await world.until(lambda: rotated(world), 300)
        after = secret(world, "shop-credentials")
        for use in ("control", "request", "kv"):
            assert after[use] != before[use]
            assert "\n" not in after[use], "the old one is gone"
        assert secret(world, "shop-request") == {"request": after["request"]}
        assert _uids(world) == uids
        template = world.existing(DEPLOYMENTS, "shop-gateway")["spec"]["template"]
        annotations = template["metadata"]["annotations"]
        assert annotations["pdserve.io/credentials"] == fingerprint(after["request"])
        held = from_data("s", world.existing(SECRETS, "shop-credentials")["data"])
        for pod in world.instances():
            name = pod["metadata"]["name"]
            want = "\n".join(control_digests(held, NS, name))
            assert pod["metadata"]["annotations"]["pdserve.io/control"] == want
        assert {e.grant for e in world.engines.by_ip.values()} == {held.revision}
        await asyncio.sleep(700)
        assert secret(world, "shop-credentials") == after, "once for each value, resync or not"


def _uids(world: World) -> set[str]:
    return {p["metadata"]["uid"] for p in world.instances()}


@virtual_time
async def test_an_instance_that_does_not_answer_holds_the_rotation_up_and_is_named() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        before = secret(world, "shop-credentials")
        engine = next(iter(world.engines.by_ip.values()))
        engine.frozen = True
        ask(world, "1")

        def named() -> bool:
            found = world.condition(PDSERVICES, "shop", "CredentialsRotated")
            return engine.pod in found.get("message", "")

        await world.until(named, 60)
        stored = secret(world, "shop-credentials")
        assert stored["request"].split("\n")[0] == before["request"], "still the old one is sent"
        engine.frozen = False
        await world.until(lambda: rotated(world), 600)


@pytest.mark.parametrize("crash_after", [0.2, 0.5, 1.0, 2.0, 4.0])
def test_a_rotation_survives_the_operator(crash_after: float) -> None:
    @virtual_time
    async def run() -> None:
        world = make()
        world.create(PDSERVICES, service(devices=2))
        async with world.running():
            async with world.operator():
                await world.until(world.service_ready)
                uids = _uids(world)
                ask(world, "1")
                await asyncio.sleep(crash_after)
            async with world.operator():
                await world.until(lambda: rotated(world), 600)
                assert _uids(world) == uids
                stored = secret(world, "shop-credentials")
                assert "\n" not in stored["request"]
                assert secret(world, "shop-request") == {"request": stored["request"]}

    run()


@virtual_time
async def test_a_deleted_secret_is_written_again_as_it_was() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        names = ("shop-credentials", "shop-request")
        before = [secret(world, name) for name in names]
        for name in names:
            world.api.handle(KubeRequest("delete", SECRETS, NS, name))
        await world.until(lambda: [secret(world, n) for n in names] == before, 1500)


# --- from an older version ----------------------------------------------------------------------


def old_token(world: World) -> None:
    """As the operator of c9d43e0 makes it."""
    owner = world.existing(PDSERVICES, "shop")["metadata"]["uid"]
    reference = {
        "apiVersion": "pdserve.io/v1alpha1", "kind": "PDService", "name": "shop", "uid": owner,
        "controller": True, "blockOwnerDeletion": True,
    }  # fmt: skip
    world.create(
        SECRETS,
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "shop-token", "namespace": NS, "ownerReferences": [reference]},
            "immutable": True,
            "data": {"token": base64.b64encode(b"old").decode()},
        },
    )


@virtual_time
async def test_after_an_upgrade_old_and_new_link_and_the_old_token_ends_by_a_rotation() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))
    old_token(world)
    async with world.running(), world.operator():
        await world.until(lambda: bool(world.engines.by_ip))
        old = next(iter(world.engines.by_ip.values()))
        old.legacy = True
        await world.until(world.service_ready, 200)

        def marked() -> bool:
            others = [e for e in world.engines.by_ip.values() if e is not old]
            return all(e.terms is not None and old.pod in e.terms.legacy for e in others)

        await world.until(marked, 60)
        ask(world, "1")

        def waits() -> bool:
            found = world.condition(PDSERVICES, "shop", "CredentialsRotated")
            return found.get("reason") == "OldInstances" and old.pod in found["message"]

        await world.until(waits, 300)
        assert world.get(SECRETS, "shop-token") is not None
        world.delete_pod(old.pod)
        await world.until(lambda: world.get(SECRETS, "shop-token") is None, 600)
        await world.until(lambda: rotated(world), 60)
        await world.until(world.service_ready, 200)


@virtual_time
async def test_requests_need_the_credential_once_no_gateway_of_an_old_operator_is_left() -> None:
    world = make()
    world.create(PDSERVICES, service(devices=2))
    async with world.running(), world.operator():
        await world.until(world.service_ready)

        def required() -> set[bool]:
            return {e.terms.required for e in world.engines.by_ip.values() if e.terms is not None}

        await world.until(lambda: required() == {True}, 60)
        pod = gateway_pods(world)[0]
        meta = {"name": "old-gateway", "namespace": NS, "labels": pod["metadata"]["labels"]}
        old = {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": pod["spec"]}
        world.create(PODS, old)
        await world.until(lambda: required() == {False}, 60)
        world.delete_pod("old-gateway")
        await world.until(lambda: required() == {True}, 120)
