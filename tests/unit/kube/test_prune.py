"""Which parts of an object survive pruning."""

from __future__ import annotations

import pytest

from pdserve.kube.prune import keep, without_managed_fields
from pdserve.kube.resource import Object

POD: Object = {
    "apiVersion": "v1",
    "kind": "Pod",
    "metadata": {
        "name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "5",
        "labels": {"x": "1"}, "annotations": {"pdserve.io/drain-started": "t", "other": "y"},
        "managedFields": [{"manager": "m"}],
    },
    "spec": {"nodeName": "n", "containers": [{"name": "c", "image": "i", "env": [1, 2, 3]}]},
    "status": {"conditions": [{"type": "Ready", "status": "True", "lastProbeTime": "t"}]},
}  # fmt: skip


def test_keeps_paths_through_lists_and_identity_always() -> None:
    prune = keep(
        "spec.nodeName",
        "spec.containers.name",
        "status.conditions.type",
        "status.conditions.status",
        "metadata.annotations[pdserve.io/drain-started]",
        "spec.not.there",
    )
    assert prune(POD) == {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": "a", "namespace": "ns", "uid": "u", "resourceVersion": "5",
            "labels": {"x": "1"}, "annotations": {"pdserve.io/drain-started": "t"},
        },
        "spec": {"nodeName": "n", "containers": [{"name": "c"}]},
        "status": {"conditions": [{"type": "Ready", "status": "True"}]},
    }  # fmt: skip


def test_a_shorter_path_keeps_all_below_it_in_either_order() -> None:
    for paths in (("spec", "spec.nodeName"), ("spec.nodeName", "spec")):
        kept = keep(*paths)(POD)
        assert kept is not None
        assert kept["spec"] == POD["spec"]


def test_the_source_is_not_changed() -> None:
    before = repr(POD)
    keep("spec")(POD)
    without_managed_fields(POD)
    assert repr(POD) == before


def test_without_managed_fields() -> None:
    assert "managedFields" not in without_managed_fields(POD)["metadata"]
    assert without_managed_fields(POD)["spec"] == POD["spec"]


@pytest.mark.parametrize("path", ["", "a..b", ".a", "a[b", "a[]"])
def test_malformed_paths(path: str) -> None:
    with pytest.raises(ValueError, match="path"):
        keep(path)


def test_equal_parts_of_many_objects_are_one_in_memory() -> None:
    prune = keep("status.conditions", "spec.size")
    condition = {"type": "Ready", "status": "True"}
    one, two = (
        prune({"metadata": {"name": name}, "status": {"conditions": [dict(condition)]}})
        for name in ("a", "b")
    )
    assert one is not None
    assert two is not None
    assert one["status"]["conditions"][0] is two["status"]["conditions"][0]


def test_sharing_never_changes_a_value() -> None:
    """1, 1.0 and True are equal to Python, and different in JSON."""
    prune = keep("spec")
    values = [{"x": True}, {"x": 1}, {"x": 1.0}, {"x": "1"}, {"x": None}, {"x": [1, True]}, {}]
    for spec in values * 2:
        kept = prune({"metadata": {"name": "a"}, "spec": spec})
        assert kept is not None
        assert repr(kept["spec"]) == repr(spec)


def test_sharing_is_bounded() -> None:
    prune = keep("spec")
    for index in range(10_000):
        kept = prune({"metadata": {"name": "a"}, "spec": {"x": str(index)}})
        assert kept is not None
        assert kept["spec"] == {"x": str(index)}
