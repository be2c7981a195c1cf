"""Deleting the services and uninstalling the chart leaves nothing. Runs last (see `Makefile`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.support import scenarios as s
from tests.support.installed import OPERATOR_NAMESPACE, Installed, helm

from pdserve.wire import names

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(400)]

OURS = "app.kubernetes.io/part-of=pdserve"
MADE = f"{names.LABEL_MANAGED_BY}={names.FIELD_MANAGER}"
USUAL = "psg,pods,configmaps,secrets,services,deployments,serviceaccounts,roles,rolebindings"


def everything(cluster: s.Cluster, selector: str) -> list[str]:
    """Objects of every kind that can be listed, of all namespaces; `kind/name`."""
    kinds = cluster.kubectl("api-resources", "--verbs=list", "-o", "name").split()
    skip = {"events", "events.events.k8s.io", "componentstatuses"}
    wanted = ",".join(k for k in kinds if k not in skip and not k.startswith("metrics"))
    said = cluster.kubectl("get", wanted, "-A", "-l", selector, "-o", "name")
    return sorted(said.split())


def wait_gone(cluster: s.Cluster, selector: str, *, but: tuple[str, ...] = ()) -> None:
    """Until `everything` is no more, `but` these kinds. The garbage collector keeps no order."""

    def left() -> list[str]:
        return [name for name in everything(cluster, selector) if not name.startswith(but)]

    s.until(f"nothing has {selector}", lambda: not left(), instead=left)


def test_uninstall_leaves_nothing(
    installed: Installed, record_property: Callable[[str, object], None]
) -> None:
    cluster = installed.cluster
    assert everything(cluster, MADE), "nothing was made: nothing is shown"
    with s.stopwatch() as seconds:
        cluster.kubectl("delete", "pds", "--all", "-A", "--wait=false")
        usual = ("get", USUAL, "-A", "-l", MADE, "-o", "name")
        s.until("all that services made is gone", lambda: not cluster.kubectl(*usual).split())
        record_property("services_gone_seconds", round(seconds(), 1))
    wait_gone(cluster, MADE)
    helm("uninstall", cluster)
    s.until("pods of the operator are gone", lambda: not installed.operators())
    wait_gone(cluster, OURS, but=("customresourcedefinition",))
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{OPERATOR_NAMESPACE}/leases"
    record_property("leases_left", len((cluster.get(leases) or {})["items"]))
    # With the CRDs and the namespace, the last trace goes; nothing holds a finalizer.
    crds = ("pdservices.pdserve.io", "scenariogroups.pdserve.io", "rocedomains.pdserve.io")
    cluster.kubectl("delete", "crd", *crds, "--timeout=60s")
    cluster.kubectl("delete", "namespace", OPERATOR_NAMESPACE, "--timeout=120s")
