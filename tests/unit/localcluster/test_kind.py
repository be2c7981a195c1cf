"""The life of a kind cluster: what is made, loaded, kept, refused and cleaned up."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.unit.localcluster.fake_engine import FakeEngine

from localcluster import clusters, kind, processes
from localcluster.cluster import LocalCluster
from localcluster.errors import LocalError
from localcluster.kind import KindCluster, KindPlan
from pdserve.kube.resource import NODES

PLAN = KindPlan({"kind": "Cluster", "nodes": []}, devices=8, images=("pdserve/engine:1",))
ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def cluster(tmp_path: Path) -> KindCluster:
    return KindCluster("c", tmp_path / "state")


def test_up_makes_nodes_with_devices_and_images(engine: FakeEngine, cluster: KindCluster) -> None:
    said: list[str] = []
    cluster.up(PLAN, said.append)
    assert sorted(engine.nodes) == ["c-control-plane", "c-worker", "c-worker2"]
    assert cluster.kubeconfig.stat().st_mode & 0o777 == 0o600
    capacity = {
        n["metadata"]["name"]: n["status"].get("capacity") for n in engine.api.objects(NODES)
    }
    assert capacity == {
        "c-control-plane": None,
        "c-worker": {"huawei.com/Ascend910": "8"},
        "c-worker2": {"huawei.com/Ascend910": "8"},
    }
    # One archive for all workers; the control plane, which takes no pods, gets none.
    [save] = engine.calls("save")
    assert save[3:] == ["pdserve/engine:1"]
    imports = sorted(engine.calls("exec", "--interactive"), key=lambda call: call[2])
    assert [call[2] for call in imports] == ["c-worker", "c-worker2"]
    assert "--snapshotter=native" in imports[0], "where the node's runtime looks"
    assert "kind: Preparing nodes" in said
    status = cluster.status()
    assert status.running
    assert status.server == "https://127.0.0.1:6443"
    assert [(n.name, n.state, n.devices) for n in status.nodes] == [
        ("c-control-plane", "Ready", 0), ("c-worker", "Ready", 8), ("c-worker2", "Ready", 8),
    ]  # fmt: skip


def test_up_again_changes_nothing_but_loads_what_changed(
    engine: FakeEngine, cluster: KindCluster
) -> None:
    cluster.up(PLAN)
    version = engine.api.version
    cluster.up(PLAN)
    assert len(engine.calls("create")) == len(engine.calls("save")) == 1
    assert engine.api.version == version
    engine.set(images={"pdserve/engine:1": "sha256:b"})
    cluster.up(PLAN)
    assert len(engine.calls("save")) == 2
    assert engine.nodes["c-worker"]["store"]["docker.io/pdserve/engine:1"] == "sha256:b"


def test_an_engine_whose_ids_differ_from_the_nodes_loads_once(
    engine: FakeEngine, cluster: KindCluster
) -> None:
    engine.set(containerd=True)
    cluster.up(PLAN)
    cluster.up(PLAN)
    assert len(engine.calls("save")) == 1
    engine.set(images={"pdserve/engine:1": "sha256:b"})
    cluster.up(PLAN)
    assert len(engine.calls("save")) == 2


def test_nodes_without_the_quick_way_are_loaded_by_kind(
    engine: FakeEngine, cluster: KindCluster
) -> None:
    engine.set(ctr="old")
    cluster.up(PLAN)
    assert len(engine.calls("load", "image-archive")) == 2
    assert engine.nodes["c-worker2"]["store"] == {"docker.io/pdserve/engine:1": "sha256:a"}
    assert not list(cluster.state_dir.glob("images-*")), "the archive is gone"


def test_images_that_the_engine_has_not_are_named(engine: FakeEngine, cluster: KindCluster) -> None:
    engine.set(images={})
    said: list[str] = []
    cluster.up(PLAN, said.append)
    [line] = [line for line in said if "pdserve/engine:1" in line]
    assert "the engine has no pdserve/engine:1" in line
    assert "make images" in line
    assert engine.calls("save") == []


def test_stopped_nodes_are_started_again(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.up(PLAN)
    nodes = dict(engine.nodes)
    nodes["c-worker"]["state"] = "exited"
    engine.set(containers=nodes)
    assert [n.state for n in cluster.status().nodes] == ["Ready", "stopped", "Ready"]
    cluster.up(PLAN)
    assert engine.nodes["c-worker"]["state"] == "running"


def test_the_node_image_of_the_environment_is_used(
    engine: FakeEngine, cluster: KindCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KIND_NODE_IMAGE", "kindest/node:v9")
    cluster.up(PLAN)
    [create] = engine.calls("create")
    assert create[-2:] == ["--image", "kindest/node:v9"]


def test_down_leaves_nothing(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.up(PLAN)
    assert cluster.down()
    assert engine.nodes == {}
    assert not cluster.state_dir.exists()
    assert not cluster.down()


def test_a_cluster_that_vanished_is_made_again(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.up(PLAN)
    engine.set(containers={})
    assert not cluster.status().running
    cluster.up(PLAN)
    assert len(engine.calls("create")) == 2


def test_another_configuration_is_refused(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.up(PLAN)
    with pytest.raises(LocalError, match="already runs with another configuration"):
        cluster.up(KindPlan({"kind": "Cluster", "nodes": [{"role": "worker"}]}))


def test_a_foreign_kind_cluster_is_left_alone(engine: FakeEngine, cluster: KindCluster) -> None:
    theirs = {"cluster": "c", "role": "control-plane", "state": "running", "store": {}}
    engine.set(containers={"c-control-plane": theirs})
    with pytest.raises(LocalError, match=r"did not make; .*kind delete cluster --name c"):
        cluster.up(PLAN)
    assert not cluster.down()
    assert list(engine.nodes) == ["c-control-plane"]


def test_a_directory_with_other_things_is_refused(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.state_dir.mkdir()
    (cluster.state_dir / "thesis.tex").touch()
    with pytest.raises(LocalError, match=r"holds other things \(thesis.tex\)"):
        cluster.up(PLAN)
    assert (cluster.state_dir / "thesis.tex").exists()
    assert engine.nodes == {}


def test_a_failed_creation_leaves_nothing(engine: FakeEngine, cluster: KindCluster) -> None:
    engine.set(create="fail")
    with pytest.raises(LocalError, match=r"nothing of it is left(?s:.*)failed to init node"):
        cluster.up(PLAN)
    assert engine.nodes == {}
    assert not cluster.state_dir.exists()


def test_a_node_image_out_of_reach_is_explained(engine: FakeEngine, cluster: KindCluster) -> None:
    engine.set(create="pull")
    with pytest.raises(LocalError, match=r"cannot be pulled(?s:.*)set KIND_NODE_IMAGE"):
        cluster.up(PLAN)


@pytest.mark.parametrize("create", ["hang", "late"])
def test_ctrl_c_while_it_is_made_leaves_nothing(
    engine: FakeEngine, cluster: KindCluster, tmp_path: Path, create: str
) -> None:
    engine.set(create=create)
    code = (
        "import sys, pathlib, signal\n"
        # A suite that runs in the background ignores SIGINT, and so would its children.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from localcluster.kind import KindCluster, KindPlan\n"
        "KindCluster('c', pathlib.Path(sys.argv[1])).up(KindPlan({'nodes': []}), print)\n"
    )
    with (tmp_path / "out").open("w") as output:
        up = subprocess.Popen(
            [sys.executable, "-u", "-c", code, str(cluster.state_dir)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
            stdout=output,
            stderr=output,
        )
    try:
        deadline = processes.Deadline(30.0)
        while not engine.nodes:
            assert up.poll() is None, (tmp_path / "out").read_text()
            assert not deadline.passed
        up.send_signal(signal.SIGINT)
        assert up.wait(30) != 0
    finally:
        up.kill()
        up.wait()
    assert engine.nodes == {}
    assert len(engine.calls("delete")) == (2 if create == "late" else 1)
    assert not cluster.state_dir.exists()


def test_what_a_killed_up_left_is_cleaned_up(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.up(PLAN)
    state = cluster.state_dir / kind.STATE
    state.write_text(state.read_text().replace('"created"', '"creating"'))
    assert "making was killed" in cluster.status().problem
    cluster.up(PLAN)
    assert len(engine.calls("delete")) == 1
    assert len(engine.calls("create")) == 2
    assert cluster.status().running


def test_two_ups_at_once_make_one_cluster(engine: FakeEngine, cluster: KindCluster) -> None:
    errors: list[BaseException] = []

    def up() -> None:
        try:
            KindCluster("c", cluster.state_dir).up(PLAN)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=up) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(engine.calls("create")) == 1


def test_without_an_engine_it_says_so(engine: FakeEngine, cluster: KindCluster) -> None:
    cluster.up(PLAN)
    engine.set(down=True)
    with pytest.raises(
        LocalError, match=r"no Docker engine answers: .*Cannot connect(?s:.*)DOCKER_HOST"
    ):
        cluster.up(PLAN)
    assert "no Docker engine answers" in cluster.status().problem
    with pytest.raises(LocalError, match="no Docker engine answers"):
        cluster.down()


def test_without_docker_it_names_the_other_way(
    cluster: KindCluster, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LocalError, match=r"no `docker` program in PATH.*--nodes process"):
        cluster.up(PLAN)
    assert not cluster.state_dir.exists()


def test_what_a_name_is_is_found_out(engine: FakeEngine, cluster: KindCluster) -> None:
    assert clusters.find("c", cluster.state_dir) is None
    cluster.up(PLAN)
    assert isinstance(clusters.find("c", cluster.state_dir), KindCluster)
    with pytest.raises(LocalError, match="cluster 'c' has kind nodes; end it first"):
        clusters.refuse_other("c", cluster.state_dir, LocalCluster)
    clusters.refuse_other("c", cluster.state_dir, KindCluster)
