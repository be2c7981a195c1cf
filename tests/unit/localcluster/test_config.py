"""kind's cluster format: what is read, what is refused and how it is said."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster.config import API_VERSION, MAX_DEVICES, load_config, parse_config
from localcluster.errors import LocalError

ROOT = Path(__file__).resolve().parents[3]


def cluster(*nodes: Any, **more: Any) -> dict[str, Any]:
    return {"kind": "Cluster", "apiVersion": API_VERSION, "nodes": list(nodes), **more}


def test_workers_become_nodes_named_as_kind_names_them() -> None:
    document = cluster(
        {"role": "control-plane", "image": "kindest/node:v1.36.3"},
        {"role": "worker", "labels": {"rack": "r1"}},
        {"role": "worker", "labels": {"rack": "r2", "local.pdserve.io/devices": "4"}},
        networking={"disableDefaultCNI": True},
    )
    config = parse_config(document, resource="nvidia.com/gpu", devices=8)
    assert [n.name for n in config.nodes] == ["pdserve-worker", "pdserve-worker2"]
    assert [n.devices for n in config.nodes] == [8, 4]
    assert config.nodes[0].labels == {"rack": "r1"}
    assert config.resource == "nvidia.com/gpu"


WORKER = {"role": "worker"}


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (None, "expected a mapping with kind: Cluster"),
        ({"kind": "Pod"}, "kind: 'Pod', expected 'Cluster'"),
        ({"kind": "Cluster", "apiVersion": "v1"}, f"apiVersion: 'v1', expected '{API_VERSION}'"),
        (cluster(), "nodes: expected a list with at least one worker"),
        (cluster({"role": "control-plane"}), "nodes: 0 with role worker, expected 1 to 200"),
        (cluster(*[WORKER] * 201), "nodes: 201 with role worker, expected 1 to 200"),
        (cluster("worker"), r"nodes\[0\]: expected a mapping with a role"),
        (cluster(WORKER, {"role": "wrker"}), r"nodes\[1\].role: 'wrker', expected one of"),
        (cluster({**WORKER, "label": {}}), r"nodes\[0\].label: kind has no such field"),
        (cluster(WORKER, node=[]), "node: kind has no such field"),
        (cluster({**WORKER, "labels": [1]}), r"nodes\[0\].labels: expected a mapping"),
        (cluster({**WORKER, "labels": {"rack": 1}}), r"labels.rack: 1, expected text"),
        (
            cluster({**WORKER, "labels": {"local.pdserve.io/devices": "many"}}),
            rf"devices: 'many', expected 0 to {MAX_DEVICES}",
        ),
        (
            cluster({**WORKER, "labels": {"local.pdserve.io/devices": "17"}}),
            rf"devices: '17', expected 0 to {MAX_DEVICES}",
        ),
    ],
)
def test_mistakes_are_named_with_their_place(document: Any, message: str) -> None:
    with pytest.raises(LocalError, match=message):
        parse_config(document, resource="huawei.com/Ascend910", devices=8)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(LocalError, match=r"absent.yaml: No such file"):
        load_config(tmp_path / "absent.yaml", resource="r/d", devices=1)
    (tmp_path / "bad.yaml").write_text("kind: [")
    with pytest.raises(LocalError, match=r"bad.yaml: not YAML"):
        load_config(tmp_path / "bad.yaml", resource="r/d", devices=1)


@pytest.mark.parametrize(
    ("path", "workers", "racks"),
    [
        ("kind-config.yaml", 4, 2),
        ("examples/local/nodes-8.yaml", 8, 2),
        ("examples/local/nodes-12.yaml", 12, 3),
    ],
)
def test_our_own_files_describe_racks_of_two_leaves(path: str, workers: int, racks: int) -> None:
    config = load_config(ROOT / path, resource="huawei.com/Ascend910", devices=8)
    assert len(config.nodes) == workers
    pairs = {
        (n.labels["fabric.pdserve.io/rack"], n.labels["fabric.pdserve.io/leaf"])
        for n in config.nodes
    }
    assert len(pairs) == 2 * racks
    assert len({rack for rack, _ in pairs}) == racks
    document = yaml.safe_load((ROOT / path).read_text())
    assert [n["role"] for n in document["nodes"]].count("control-plane") == 1
