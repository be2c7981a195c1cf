"""The in-memory API model answers as a real kube-apiserver does.

Tables of requests and expected answers (`kube_cases`, `kube_apply_cases`), run against both.
Whatever a simulation relies on belongs there: a row that holds on one side only is a fault of the
model, or of what we expect.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_asyncio
from tests.api.kube_apply_cases import APPLY_CASES
from tests.api.kube_cases import CASES
from tests.api.kube_steps import (
    ABSENT,
    NEW,
    PRESENT,
    SAME,
    WIDGET_CRD,
    WIDGETS,
    Session,
    delete,
    op,
    patch,
    post,
)

from pdserve.dst.api_kinds import kind_of_crd
from pdserve.dst.api_net import FakeTransport, Faults
from pdserve.dst.api_server import FakeApi
from pdserve.exposition import Registry
from pdserve.kube.client import KubeClient
from pdserve.kube.connect import api_client
from pdserve.kube.errors import KubeError
from pdserve.kube.ownership import owner_reference
from pdserve.kube.resource import CONFIGMAPS, CRDS, NAMESPACES, Object
from pdserve.kube.transport import HttpTransport

pytestmark = pytest.mark.api
ALL = CASES | APPLY_CASES


@pytest_asyncio.fixture(params=["model", "real"])
async def session(request: pytest.FixtureRequest) -> AsyncIterator[Session]:
    if request.param == "model":
        crd = kind_of_crd(WIDGET_CRD)
        api = FakeApi(crd, namespaces=("default", "conformance"))
        yield Session(FakeTransport(api, Faults()), "conformance")
        return
    plane = request.getfixturevalue("control_plane")
    transport = HttpTransport(await api_client(plane.kubeconfig), Registry())
    client = KubeClient(transport)
    try:
        await _install(client)
        created = await client.create(NAMESPACES, {"metadata": {"generateName": "conformance-"}})
        yield Session(transport, created["metadata"]["name"])
    finally:
        await client.close()


async def _install(client: KubeClient) -> None:
    try:
        await client.create(CRDS, WIDGET_CRD)
    except KubeError as error:
        if not error.is_already_exists:
            raise
    async with asyncio.timeout(30):
        while True:
            try:
                await client.list(WIDGETS)
                return
            except KubeError:
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("name", ALL)
async def test_same_answers(session: Session, name: str) -> None:
    for number, step in enumerate(ALL[name], 1):
        where = f"{name}, step {number}"
        try:
            answer = await step.call(session)
        except KubeError as error:
            assert f"{error.status} {error.reason}" == step.want, f"{where}: {error}"
            continue
        assert step.want == "ok", f"{where}: want {step.want}, got {answer}"
        before = session.last.get(answer["metadata"].get("name", ""), {})
        for path, want in step.see.items():
            _check(f"{where}: {path}", want, list(_find(answer, path.split("."))), before, path)
        if "resourceVersion" in answer["metadata"]:
            session.last[answer["metadata"]["name"]] = answer


def _find(value: Any, parts: list[str]) -> Iterator[Any]:
    if not parts:
        yield value
    elif parts[0] == "*":
        for item in value:
            yield from _find(item, parts[1:])
    elif isinstance(value, dict) and parts[0] in value:
        yield from _find(value[parts[0]], parts[1:])


def _check(where: str, want: Any, found: list[Any], before: Object, path: str) -> None:
    if want in (SAME, NEW):
        held = list(_find(before, path.split(".")))
        assert (found == held) == (want == SAME), f"{where}: {held} -> {found}"
    elif want == PRESENT:
        assert found and found[0], where
    elif want == ABSENT:
        assert not found, f"{where}: {found}"
    elif "*" in path:
        # Order within keyed lists is no promise of the API.
        assert sorted(found, key=repr) == sorted(want, key=repr), where
    else:
        assert found == [want], f"{where}: {found}"


async def test_a_watch_shows_the_same_changes(session: Session) -> None:
    async def changes(version: str) -> list[tuple[str, str, str | None]]:
        seen: list[tuple[str, str, str | None]] = []
        async with asyncio.timeout(60):
            async for event in session.client.watch(
                CONFIGMAPS, session.namespace, resource_version=version, label_selector="in=yes"
            ):
                meta = event.object["metadata"]
                if event.type != "BOOKMARK":
                    seen.append((event.type, meta["name"], event.object.get("data", {}).get("x")))
                if meta.get("name") == "end":
                    return seen
        raise AssertionError("the watch ended before its last change")

    client, inside, outside = session.client, {"labels": {"in": "yes"}}, {"labels": {"in": "no"}}
    start = (await client.list(CONFIGMAPS, session.namespace)).resource_version
    for call in (
        post(CONFIGMAPS, "a", inside, data={"x": "1"}),
        post(CONFIGMAPS, "b", outside, data={"x": "1"}),
        patch(CONFIGMAPS, "a", op("replace", "/data/x", "2")),
        patch(CONFIGMAPS, "b", op("replace", "/metadata/labels/in", "yes")),
        patch(CONFIGMAPS, "a", op("replace", "/metadata/labels/in", "no")),
        patch(CONFIGMAPS, "a", op("replace", "/data/x", "3")),
        delete(CONFIGMAPS, "b"),
        post(CONFIGMAPS, "end", inside),
    ):
        await call(session)
    assert await changes(start) == [
        ("ADDED", "a", "1"),
        ("MODIFIED", "a", "2"),
        ("ADDED", "b", "1"),
        ("DELETED", "a", "2"),
        ("DELETED", "b", "1"),
        ("ADDED", "end", None),
    ]


async def test_owner_reference_names_the_object(session: Session) -> None:
    owner = await post(CONFIGMAPS, "boss")(session)
    made = session.obj(CONFIGMAPS, "made", {"ownerReferences": [owner_reference(owner)]})
    answer = await session.client.create(CONFIGMAPS, made)
    assert answer["metadata"]["ownerReferences"][0]["uid"] == owner["metadata"]["uid"]
