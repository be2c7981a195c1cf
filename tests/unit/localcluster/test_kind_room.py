"""A second kind cluster where inotify instances do not suffice is refused before the work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.localcluster.fake_engine import FakeEngine

from localcluster import kindroom
from localcluster.errors import LocalError
from localcluster.kind import KindCluster, KindPlan

ROOT = Path(__file__).resolve().parents[3]
PLAN = KindPlan({"kind": "Cluster", "nodes": [{"role": "worker"}] * 5}, images=())


def nodes(cluster: str, count: int, state: str = "running") -> dict[str, Any]:
    node = {"cluster": cluster, "role": "worker", "state": state, "store": {}}
    return {f"{cluster}-worker{number}": node for number in range(count)}


@pytest.mark.parametrize(
    ("running", "inotify", "room"),
    [
        pytest.param({}, [128, 20], True, id="a first cluster"),
        pytest.param(nodes("other", 5), [128, 20], False, id="beside five nodes, Linux' default"),
        pytest.param(nodes("other", 5), [512, 20], True, id="beside five nodes, kind's advice"),
        pytest.param(nodes("other", 1), [128, 3], True, id="just enough"),
        pytest.param(nodes("other", 1), [128, 4], False, id="one too few"),
        pytest.param(nodes("other", 5, "exited"), [128, 20], True, id="stopped nodes use none"),
        pytest.param(nodes("mine", 5), [128, 20], True, id="nodes of its own"),
        pytest.param(nodes("a", 5) | nodes("b", 9), [512, 40], False, id="of several clusters"),
        pytest.param(nodes("other", 5), None, True, id="nodes that do not say"),
        pytest.param(nodes("other", 5), ["?", "?"], True, id="nodes that say something else"),
    ],
)
def test_nodes_are_counted_beside_those_of_other_clusters(
    engine: FakeEngine, running: dict[str, Any], inotify: list[Any] | None, room: bool
) -> None:
    engine.set(containers=running, inotify=inotify)
    if room:
        kindroom.check(5, "mine")
        return
    with pytest.raises(LocalError, match="no room for 5 kind nodes") as refused:
        kindroom.check(5, "mine")
    assert "sysctl fs.inotify.max_user_instances=512" in str(refused.value)
    for cluster in {node["cluster"] for node in running.values()}:
        assert f"kind delete cluster --name {cluster}" in str(refused.value)


def test_up_refuses_before_kind_is_asked(engine: FakeEngine, tmp_path: Path) -> None:
    engine.set(containers=nodes("other", 5), inotify=[128, 20])
    cluster = KindCluster("mine", tmp_path / "state")
    with pytest.raises(LocalError, match=r"they need up to 125 .* 5 nodes .* use 100 of 128"):
        cluster.up(PLAN)
    assert engine.calls("create") == []
    assert len(engine.nodes) == 5
    engine.set(inotify=[512, 20])
    cluster.up(PLAN)
    assert len(engine.calls("create")) == 1


def test_the_command_that_make_e2e_runs_first_says_one_line(engine: FakeEngine) -> None:
    def ran() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "localcluster.kindroom", "5", "e2e"],
            env={"PATH": str(engine.folder), "PYTHONPATH": str(ROOT / "operator")},
            capture_output=True, text=True, check=False,
        )  # fmt: skip

    engine.set(containers=nodes("other", 5), inotify=[128, 20])
    refused = ran()
    assert refused.returncode == 1
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1
    engine.set(inotify=[512, 20])
    assert (ran().returncode, ran().stderr) == (0, "")


def test_make_asks_for_as_many_nodes_as_the_cluster_has() -> None:
    [asked] = re.findall(r"kindroom (\d+) e2e", (ROOT / "Makefile").read_text())
    document = yaml.safe_load((ROOT / "kind-config.yaml").read_text())
    assert int(asked) == len(document["nodes"])


@pytest.mark.parametrize(("where", "asked"), [("kind", True), ("kubeconfig", False)])
def test_make_e2e_asks_first_where_it_makes_a_kind_cluster(where: str, asked: bool) -> None:
    assert re.search(r"^e2e: kind-room ", (ROOT / "Makefile").read_text(), re.MULTILINE)
    done = subprocess.run(
        ["make", "--dry-run", "kind-room", f"NODES={where}"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert ("kindroom" in done.stdout) is asked
