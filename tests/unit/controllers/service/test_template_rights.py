"""What a template asks for beyond its author's rights makes no pod, and is reported."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import pytest

from pdserve.controllers.options import parse_options
from pdserve.controllers.shared.caches import PDSERVICES, SCENARIO_GROUPS
from pdserve.dst.virtual_time import virtual_time
from pdserve.dst.world import World
from pdserve.dst.world_service import NS, service
from pdserve.engines.pod_profile import Allowed, Rights
from pdserve.kube.resource import SECRETS, Object

ROOT = {"spec": {"hostPID": True}}


def make(**fields: Any) -> World:
    world = World(seed=0, **fields)
    world.nodes(["a", "b"], per_leaf=2)
    world.domain()
    return world


def ready(world: World, name: str) -> bool:
    return world.condition(SCENARIO_GROUPS, name, "Ready").get("status") == "True"


def by_hand(name: str, scenario: str = "chat", owners: Any = None, **spec: Any) -> Object:
    shared = {k: v for k, v in service()["spec"].items()
              if k in ("model", "engine", "prefill", "decode", "fabric")}  # fmt: skip
    whole = {**shared, "service": "shop", "scenario": scenario, "replicas": 1, **spec}
    for role in ("prefill", "decode"):
        whole[role] = {**whole[role], "replicas": 1}
    return {
        "apiVersion": "pdserve.io/v1alpha1",
        "kind": "ScenarioGroup",
        "metadata": {"name": name, "namespace": NS, "ownerReferences": owners or []},
        "spec": whole,
    }


def template(world: World, resource: Any, name: str) -> tuple[str, str]:
    found = world.condition(resource, name, "TemplateValid")
    return found.get("status", ""), found.get("reason", "")


@pytest.mark.invariant(15)
@virtual_time
async def test_by_a_pdservice() -> None:
    world = make()
    wanted = service()
    wanted["spec"]["decode"]["template"] = ROOT
    world.create(PDSERVICES, wanted)
    async with world.running(), world.operator():
        await world.until(lambda: template(world, PDSERVICES, "shop") == ("False", "NotAllowed"))
        message = world.condition(PDSERVICES, "shop", "TemplateValid")["message"]
        assert message.startswith("decode: template.spec.hostPID")
        await asyncio.sleep(120)
        assert world.instances() == []
        assert len(world.events("TemplateInvalid")) == 1, "told once, not at every look"


@pytest.mark.invariant(15)
@virtual_time
async def test_by_a_scenario_group_written_by_hand() -> None:
    world = make()
    group = by_hand("mine")
    group["spec"]["prefill"]["template"] = ROOT
    world.create(SCENARIO_GROUPS, group)
    async with world.running(), world.operator():
        await world.until(lambda: template(world, SCENARIO_GROUPS, "mine")[1] == "NotAllowed")
        await asyncio.sleep(120)
        assert world.instances() == []


@pytest.mark.invariant(2)
@virtual_time
async def test_what_serves_goes_on_when_a_change_is_not_allowed() -> None:
    world = make()
    world.create(SCENARIO_GROUPS, by_hand("mine"))
    async with world.running(), world.operator():
        ready = lambda: (  # noqa: E731
            world.condition(SCENARIO_GROUPS, "mine", "Ready").get("status") == "True"
        )
        await world.until(ready)
        before = {p["metadata"]["uid"] for p in world.instances()}
        group = world.get(SCENARIO_GROUPS, "mine")
        assert group is not None
        prefill = {**group["spec"]["prefill"], "template": ROOT}
        world.patch(SCENARIO_GROUPS, NS, "mine", {"spec": {"prefill": prefill}})
        await world.until(lambda: template(world, SCENARIO_GROUPS, "mine")[0] == "False")
        progressing = world.condition(SCENARIO_GROUPS, "mine", "Progressing")
        assert progressing["reason"] == "TemplateInvalid"
        await asyncio.sleep(300)
        assert {p["metadata"]["uid"] for p in world.instances()} == before


@virtual_time
async def test_an_allow_list_is_asked_anew_by_the_next_operator() -> None:
    world = make()
    wanted = service()
    wanted["spec"]["decode"]["template"] = ROOT
    world.create(PDSERVICES, wanted)
    async with world.running():
        async with world.operator():
            await world.until(lambda: template(world, PDSERVICES, "shop")[0] == "False")
        world.rights = Rights((Allowed("spec.hostPID"),))
        async with world.operator():
            await world.until(world.service_ready)
            assert template(world, PDSERVICES, "shop") == ("True", "Accepted")


def token_users(world: World) -> set[str]:
    """ScenarioGroups whose instances were given a token."""
    return {pod["metadata"]["ownerReferences"][0]["name"] for pod in world.instances()}


FORGED = [{"apiVersion": "v1", "kind": "ConfigMap", "name": "mine", "uid": "u-1",
           "controller": True}]  # fmt: skip


@pytest.mark.invariant(15)
@pytest.mark.parametrize("owners", [None, FORGED], ids=["no owner", "an owner of its own"])
@virtual_time
async def test_a_group_by_hand_does_not_get_the_token_of_another_service(
    owners: Any,
) -> None:
    world = make()
    world.create(PDSERVICES, service())
    async with world.running(), world.operator():
        await world.until(world.service_ready)
        world.create(SCENARIO_GROUPS, by_hand("spy", "other", owners))
        await world.until(lambda: template(world, SCENARIO_GROUPS, "spy")[1] == "NotAllowed")
        message = world.condition(SCENARIO_GROUPS, "spy", "TemplateValid")["message"]
        assert message.startswith("spec.service")
        await asyncio.sleep(120)
        assert token_users(world) == {"shop-chat"}


@virtual_time
async def test_nor_of_a_secret_that_a_user_made() -> None:
    world = make()
    world.create(SECRETS, {"metadata": {"name": "shop-token", "namespace": NS}, "data": {}})
    world.create(SCENARIO_GROUPS, by_hand("spy"))
    async with world.running(), world.operator():
        await world.until(lambda: template(world, SCENARIO_GROUPS, "spy")[1] == "NotAllowed")
        await asyncio.sleep(120)
        assert world.instances() == []


@pytest.mark.invariant(15)
@virtual_time
async def test_nor_a_pdservice_that_is_named_after_it() -> None:
    """Asking its author would not help: a PDService alone needs no right to Secrets."""
    world = make(rights=Rights(authors_checked=True))
    secret = {"metadata": {"name": "payroll-token", "namespace": NS}, "data": {"token": "eA=="}}
    world.create(SECRETS, secret)
    world.create(PDSERVICES, service("payroll"))
    async with world.running(), world.operator():
        await world.until(
            lambda: (
                world.condition(PDSERVICES, "payroll", "Degraded")["reason"] == "ObjectRefused"
                if world.condition(PDSERVICES, "payroll", "Degraded")
                else False
            )
        )
        await asyncio.sleep(120)
        assert world.instances() == []


@pytest.mark.parametrize(
    "rights",
    [
        Rights(authors_checked=True),
        Rights((Allowed.parse(
            "spec.containers[*].env[*].valueFrom.secretKeyRef=shop-token"),)),
    ],
    ids=["the API server checked its author", "an administrator allowed it"],
)  # fmt: skip
@virtual_time
async def test_it_gets_it_where_its_author_may_have_it(rights: Rights) -> None:
    world = make(rights=rights)
    world.create(SCENARIO_GROUPS, by_hand("first"))
    world.create(SCENARIO_GROUPS, by_hand("second", "other"))
    async with world.running(), world.operator():
        for name in ("first", "second"):
            await world.until(partial(ready, world, name))


def test_the_flags() -> None:
    options = parse_options(
        ["--allowed-pod-fields", "spec.hostPID, team:spec.volumes[*].hostPath=/dev/x",
         "--authors-checked"], {},
    )  # fmt: skip
    assert options.rights == Rights(
        (Allowed("spec.hostPID"), Allowed("spec.volumes[*].hostPath", "/dev/x", "team")), True
    )
    assert parse_options([], {}).rights == Rights()
