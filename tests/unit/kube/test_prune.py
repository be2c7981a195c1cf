"""Which parts of an object survive pruning."""

from __future__ import annotations

from pdserve.kube.prune import without_managed_fields
from pdserve.kube.resource import Object

POD: Object = {
    "metadata": {"name": "a", "managedFields": [{"manager": "m"}]},
    "spec": {"nodeName": "n"},
}


def test_without_managed_fields() -> None:
    before = repr(POD)
    assert "managedFields" not in without_managed_fields(POD)["metadata"]
    assert without_managed_fields(POD)["spec"] == POD["spec"]
    assert repr(POD) == before, "the source is not changed"
    small = {"metadata": {"name": "b"}}
    assert without_managed_fields(small) is small
