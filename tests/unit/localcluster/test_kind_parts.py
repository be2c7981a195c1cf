"""The pure parts of kind clusters: configuration, image names, what a node lacks; commands."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from localcluster import kind, kindroom
from localcluster.agent.images import full_name
from localcluster.commands import CommandError, answer, follow
from localcluster.config import parse_config, read_document
from localcluster.devices import ANNOTATION_FAKE
from localcluster.errors import LocalError
from localcluster.kindconfig import DEFAULT_NODE_GRACE, kind_document
from localcluster.kindimages import DEFAULT_IMAGES, built_images, lacking
from localcluster.kindnodes import lacks_devices, missing

ROOT = Path(__file__).resolve().parents[3]


def test_the_default_grace_leaves_the_file_as_it_is() -> None:
    document = read_document(ROOT / "kind-config.yaml")
    assert kind_document(document, node_grace=DEFAULT_NODE_GRACE) == document


def test_our_file_asks_for_no_image_and_bears_old_cgroups() -> None:
    document = read_document(ROOT / "kind-config.yaml")
    assert not any("image" in node for node in document["nodes"])
    [patch] = [yaml.safe_load(text) for text in document["kubeadmConfigPatches"]]
    assert patch == {"kind": "KubeletConfiguration", "failCgroupV1": False}


def test_node_grace_keeps_kubernetes_proportions() -> None:
    document = {"kind": "Cluster", "kubeadmConfigPatches": ["kind: JoinConfiguration\n"]}
    made = kind_document(document, node_grace=10)
    first, manager, kubelet = [yaml.safe_load(text) for text in made["kubeadmConfigPatches"]]
    assert first == {"kind": "JoinConfiguration"}
    # No apiVersion: kind then applies it to the kubeadm version of any node image.
    assert manager == {
        "kind": "ClusterConfiguration",
        "controllerManager": {
            "extraArgs": {"node-monitor-grace-period": "10s", "node-monitor-period": "2s"}
        },
    }
    assert kubelet == {"kind": "KubeletConfiguration", "nodeLeaseDurationSeconds": 8}
    assert len(document["kubeadmConfigPatches"]) == 1


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("pdserve/engine:1", "docker.io/pdserve/engine:1"),
        ("busybox", "docker.io/library/busybox:latest"),
        ("localhost/a:1", "localhost/a:1"),
        ("registry.example:5000/a/b", "registry.example:5000/a/b:latest"),
    ],
)
def test_nodes_know_images_by_full_names(image: str, full: str) -> None:
    assert full_name(image) == full


@pytest.mark.parametrize(
    ("case", "store", "recorded", "want"),
    [
        ("nothing there", {}, {}, True),
        ("the same", {"docker.io/a/b:1": "sha256:1"}, {}, False),
        ("another id", {"docker.io/a/b:1": "sha256:0"}, {}, True),
        ("ids differ by engine, loaded", {"docker.io/a/b:1": "sha256:x"}, {"a/b:1": "sha256:1"}, 0),
        ("loaded before a change", {"docker.io/a/b:1": "sha256:x"}, {"a/b:1": "sha256:0"}, True),
        ("loaded, then removed", {}, {"a/b:1": "sha256:1"}, True),
    ],
)
def test_what_a_node_lacks(
    case: str, store: dict[str, str], recorded: dict[str, str], want: bool
) -> None:
    found = lacking({"a/b:1": "sha256:1"}, {"n": store}, {"n": recorded})
    assert found == ({"n": ["a/b:1"]} if want else {}), case


def test_what_make_images_wrote_is_read(tmp_path: Path) -> None:
    path = tmp_path / "images.json"
    path.write_text('{"images": [{"name": "r.example/pdserve/engine", "tag": "7", "bytes": 1}]}')
    assert built_images(path) == ("r.example/pdserve/engine:7",)
    path.write_text('{"images": [{}]}')
    with pytest.raises(LocalError, match=r"images\.json: not what `make images` writes"):
        built_images(path)
    with pytest.raises(LocalError, match=r"No such file.*`make images` writes it"):
        built_images(tmp_path / "absent")


def test_images_are_those_that_the_examples_name() -> None:
    examples = "".join(p.read_text() for p in sorted((ROOT / "examples").rglob("*.yaml")))
    assert all(image in examples for image in DEFAULT_IMAGES if "engine" in image)
    prometheus = (ROOT / "examples" / "local" / "prometheus.yaml").read_text()
    assert DEFAULT_IMAGES[-1] in prometheus


def test_our_file_is_good_for_process_nodes_too() -> None:
    document = read_document(ROOT / "kind-config.yaml")
    assert "kubeadmConfigPatches" in document
    assert len(parse_config(document, resource="r/d", devices=8).nodes) == 4


def test_a_failing_command_shows_what_it_said(tmp_path: Path) -> None:
    code = "import sys; print('out'); sys.exit('it broke')"
    with pytest.raises(CommandError, match=r"failed: it broke") as short:
        answer([sys.executable, "-c", code])
    assert short.value.said == "it broke"
    lines: list[str] = []
    with pytest.raises(CommandError, match=r"failed \(exit 1\)(?s:.*)it broke"):
        follow([sys.executable, "-c", code], tmp_path / "log", seconds=20.0, line=lines.append)
    assert sorted(lines) == ["it broke", "out"]


def test_a_command_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", "import time; time.sleep(600)"]
    with pytest.raises(CommandError, match=r"took longer than 0\.2 s"):
        answer(argv, seconds=0.2)
    with pytest.raises(CommandError, match=r"took longer than 0\.2 s"):
        follow(argv, tmp_path / "log", seconds=0.2)


def test_a_program_that_is_not_there_is_named() -> None:
    with pytest.raises(CommandError, match="cannot run /nowhere/tool: No such file"):
        answer(["/nowhere/tool"])


@pytest.mark.parametrize(("limit", "hinted"), [("128\n", True), ("8192\n", False), (None, False)])
def test_kubelets_that_do_not_start_hint_at_inotify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, hinted: bool
) -> None:
    file = tmp_path / "max_user_instances"
    if limit is not None:
        file.write_text(limit)
    monkeypatch.setattr(kindroom, "LIMIT", file)
    error = kind.create_error("two", CommandError("kind failed", "kubeadm join: timed out"))
    assert ("sysctl fs.inotify.max_user_instances=512" in str(error)) is hinted
    assert "could not be made, and nothing of it is left: kind failed" in str(error)


def test_a_node_that_registers_late_is_waited_for_and_lacks_devices() -> None:
    """Found by an end-to-end run: kind answered when three of four workers had registered."""
    npu = ("huawei.com/Ascend910", 8)
    ready = {"type": "Ready", "status": "True"}

    def node(name: str, **amounts: str) -> dict[str, Any]:
        status = {"conditions": [ready], "capacity": amounts, "allocatable": amounts}
        mark = {"annotations": {ANNOTATION_FAKE: npu[0]}}
        return {"metadata": {"name": name, **mark}, "spec": {}, "status": status}

    good, late = node("a", **{npu[0]: "8"}), node("b")
    reset = node("c", **{npu[0]: "0"})
    assert missing(["a"], [good], *npu) == []
    assert missing(["a", "b"], [good], *npu) == ["b has not registered"]
    assert missing(["a", "b"], [good, late], *npu) == [f"b has no {npu[0]} yet"]
    assert [lacks_devices(each, *npu) for each in (good, late, reset)] == [False, True, True]
