"""Local clusters begin and end: idempotent up, down without a trace, owners, lost components."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.cluster import (
    FAST_AGENT,
    ClusterAccess,
    eventually,
)
from tests.support.own_clusters import DEPLOYMENT, own_cluster, small_plan

from localcluster import processes
from localcluster.agent.addresses import ClusterNumber
from localcluster.cluster import LocalCluster
from localcluster.errors import LocalError

pytestmark = pytest.mark.cluster


@own_cluster
def test_up_twice_and_down_leave_what_they_should(tmp_path: Path) -> None:
    local = LocalCluster("twice", tmp_path / "twice")
    lines: list[str] = []
    try:
        local.up(small_plan("twice"), lines.append)
        first = local.status()
        assert first.running
        assert any("control plane ready in" in line for line in lines)
        local.up(small_plan("twice"), lines.append)
        assert lines[-1] == "cluster 'twice' is already running"
        assert local.status().server == first.server
        with pytest.raises(LocalError, match="already runs with another configuration"):
            local.up(small_plan("twice", nodes=2))
        assert first.details is not None
        pids = [p["pid"] for p in first.details["processes"].values()]
        assert len(pids) == 5
        access = ClusterAccess(local)
        access.apply(DEPLOYMENT % {"name": "left"})
        pids += _pids_of_pods(local, 3)
    finally:
        assert local.down()
    assert not (tmp_path / "twice").exists()
    assert [pid for pid in pids if processes.is_alive(pid)] == []
    assert not local.down()
    assert not local.status().running


@own_cluster
def test_sigkill_leaves_no_orphan_and_the_next_up_starts_afresh(tmp_path: Path) -> None:
    local = LocalCluster("killed", tmp_path / "killed")
    try:
        local.up(small_plan("killed"))
        access = ClusterAccess(local)
        access.apply(DEPLOYMENT % {"name": "doomed"})
        pids = _pids_of_pods(local, 3)
        children = eventually("each has a child", lambda: _children_of_each(pids))
        status = local.admin.status()
        pids += children + [p["pid"] for p in status["processes"].values()]
        os.kill(status["processes"]["node agent"]["pid"], signal.SIGKILL)
        eventually("no orphans", lambda: not any(processes.is_alive(p) for p in pids))
        assert not local.status().running
        local.up(small_plan("killed"))
        assert (
            ClusterAccess(local).get("/apis/apps/v1/namespaces/default/deployments/doomed") is None
        )
    finally:
        local.down()


@own_cluster
def test_an_owned_cluster_ends_with_its_owner(tmp_path: Path) -> None:
    code = (
        "import pathlib, sys, threading\n"
        "from tests.support.own_clusters import small_plan\n"
        "from localcluster.cluster import LocalCluster\n"
        "LocalCluster('owned', pathlib.Path(sys.argv[1])).up(small_plan('owned'), owned=True)\n"
        "print('up', flush=True)\n"
        "threading.Event().wait()\n"
    )
    state = tmp_path / "owned"
    owner = subprocess.Popen([sys.executable, "-c", code, str(state)], stdout=subprocess.PIPE)
    local = LocalCluster("owned", state)
    try:
        assert owner.stdout is not None
        assert owner.stdout.readline() == b"up\n"
        pids = [p["pid"] for p in local.admin.status()["processes"].values()]
    finally:
        owner.kill()
        owner.wait()
    eventually("no orphans", lambda: not any(processes.is_alive(p) for p in pids))
    assert not local.status().running
    local.down()


@own_cluster
def test_a_component_lost_later_ends_the_cluster_and_status_says_which(tmp_path: Path) -> None:
    local = LocalCluster("lost", tmp_path / "lost")
    try:
        local.up(small_plan("lost"))
        os.kill(local.admin.status()["processes"]["kube-scheduler"]["pid"], signal.SIGKILL)
        wanted = "kube-scheduler ended (killed by signal 9"
        eventually("status says which", lambda: wanted in local.status().problem)
        assert not local.status().running
    finally:
        local.down()


@own_cluster
def test_without_namespaces_pods_still_run_and_find_their_volumes(tmp_path: Path) -> None:
    local = LocalCluster("plain", tmp_path / "plain")
    settings = dataclasses.replace(FAST_AGENT, namespaces=False)
    plan = dataclasses.replace(small_plan("plain"), agent=settings)
    ask = (
        "import asyncio, sys, pathlib; from pdserve.kube.connect import connect\n"
        "from pdserve.kube.errors import KubeError; from pdserve.kube.resource import PODS\n"
        "print(pathlib.Path(sys.argv[1]).read_text(), flush=True)\n"
        "async def main():\n"
        "    try: await (await connect()).list(PODS, 'default')\n"
        "    except KubeError as error: print(error.message, flush=True)\n"
        "asyncio.run(main())"
    )
    try:
        local.up(plan, owned=True)
        access = ClusterAccess(local)
        assert local.admin.status()["without_namespaces"] == "switched off"
        access.apply(
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"},
             "data": {"k": "mounted"}},
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "plain"}, "spec": {
                "restartPolicy": "Never",
                "containers": [{
                    "name": "main", "image": "pdserve/engine", "command": ["python", "-c", ask],
                    "args": ["/etc/app/k"],
                    "volumeMounts": [{"name": "c", "mountPath": "/etc/app"}]}],
                "volumes": [{"name": "c", "configMap": {"name": "c"}}]}},
        )  # fmt: skip
        access.wait_pod("plain", lambda p: p["status"].get("phase") in ("Succeeded", "Failed"))
        lines = access.kubectl("logs", "plain").splitlines()
        assert lines[0] == "mounted"
        assert "system:serviceaccount:default:default" in lines[1]
    finally:
        local.down()


def test_a_directory_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("irreplaceable")
    with pytest.raises(LocalError, match=r"holds other things \(thesis.tex\)"):
        LocalCluster("x", tmp_path).up(small_plan("x"))
    assert not LocalCluster("x", tmp_path).down()
    assert (tmp_path / "thesis.tex").read_text() == "irreplaceable"


def test_clusters_get_different_networks() -> None:
    one, two = ClusterNumber(), ClusterNumber()
    try:
        assert one.number != two.number
    finally:
        one.release()
        two.release()


def _pids_of_pods(local: LocalCluster, count: int) -> list[int]:
    """The main process of each of `count` pods, once all run."""

    def now() -> list[int]:
        pods = local.admin.status()["pods"].values()
        pids = [pid for pod in pods for pid in pod["pids"].values() if pid is not None]
        return pids if len(pids) == count else []

    found: list[int] = eventually(f"{count} pods run", now)
    return found


def _children_of_each(pids: list[int]) -> list[int]:
    texts = [Path(f"/proc/{pid}/task/{pid}/children").read_text() for pid in pids]
    return [int(child) for text in texts for child in text.split()] if all(texts) else []
