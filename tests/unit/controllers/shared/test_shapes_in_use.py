"""The shapes of a RoCEDomain's groups are looked for again when a spec changed, and not before."""

from __future__ import annotations

from typing import Any

import pytest

from pdserve.controllers.shared import shapes_in_use
from pdserve.controllers.shared.caches import Caches, make_caches
from pdserve.controllers.shared.shapes_in_use import ShapesInUse
from pdserve.dst.api_server import FakeApi
from pdserve.exposition import Registry
from pdserve.placement import Shape

NPU, CARD = "example.com/npu", "example.com/card"


class Groups:
    """ScenarioGroups put into a cache by hand."""

    def __init__(self, namespace: str | None = None) -> None:
        client, self.skipped = FakeApi().client(), 0
        self.caches: Caches = make_caches(client, namespace, Registry(), self._skip)
        self.shapes = ShapesInUse(self.caches)
        self.version = 1

    def _skip(self, *_: object) -> None:
        self.skipped += 1

    def put(
        self, name: str, prefill: tuple[str, object], decode: tuple[str, object], **status: Any
    ) -> None:
        self.version += 1
        roles = {
            role: {"instance": {"resource": resource, "devicesPerNode": count}}
            for role, (resource, count) in (("prefill", prefill), ("decode", decode))
        }
        version = str(self.version)
        meta = {"name": name, "namespace": "team", "uid": name, "resourceVersion": version}
        spec = {"service": "x", "fabric": {"domainRef": {"name": "az1"}}, **roles}
        self.caches.groups.observe({"metadata": meta, "spec": spec, "status": status})


def test_the_first_group_by_name_counts_for_its_resource() -> None:
    groups = Groups()
    assert groups.shapes.of("az1") == {}
    groups.put("b", (NPU, 4), (NPU, 8))
    groups.put("c", (CARD, 1), (CARD, 2))
    groups.put("d", (NPU, 2), (CARD, 2))
    assert groups.shapes.of("az1") == {
        NPU: (Shape(NPU, 4), Shape(NPU, 8)),
        CARD: (Shape(CARD, 1), Shape(CARD, 2)),
    }
    groups.put("a", (NPU, 1), (NPU, 1))
    assert groups.shapes.of("az1") == {
        NPU: (Shape(NPU, 1), Shape(NPU, 1)),
        CARD: (Shape(CARD, 1), Shape(CARD, 2)),
    }
    groups.put("a", (NPU, "many"), (NPU, 1))
    assert groups.shapes.of("az1") == {
        NPU: (Shape(NPU, 4), Shape(NPU, 8)),
        CARD: (Shape(CARD, 1), Shape(CARD, 2)),
    }
    assert groups.skipped == 1
    groups.caches.groups.observe_gone(groups.caches.groups.list()[1])
    assert groups.shapes.of("az1") == {CARD: (Shape(CARD, 1), Shape(CARD, 2))}
    assert groups.shapes.of("az2") == {}


def test_an_operator_of_one_namespace_says_nothing_of_shapes() -> None:
    groups = Groups("team")
    groups.put("b", (NPU, 4), (NPU, 8))
    assert groups.shapes.of("az1") == {}


def test_groups_are_read_again_only_after_a_change_of_a_spec(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    groups, passes = Groups(), [0]
    read = shapes_in_use.read_each

    def counted(*args: Any) -> Any:
        passes[0] += 1
        return read(*args)

    monkeypatch.setattr(shapes_in_use, "read_each", counted)
    for step in range(5):
        groups.put("b", (NPU, 4), (NPU, 8), ready=step)
        assert groups.shapes.of("az1") == {NPU: (Shape(NPU, 4), Shape(NPU, 8))}
    assert passes == [1]
    groups.put("b", (NPU, 4), (NPU, 4), ready=9)
    assert groups.shapes.of("az1") == {NPU: (Shape(NPU, 4), Shape(NPU, 4))}
    assert passes == [2]
