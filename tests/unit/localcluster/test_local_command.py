"""`pdserve local` on the command line: what a name is, what is printed where, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from tests.unit.localcluster.fake_engine import FakeEngine

from localcluster.plan import PLAN
from pdserve.cli.main import main
from pdserve.kube.resource import NODES

UP = ("up", "--nodes", "kind", "--name", "c", "--image", "pdserve/engine:1")


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PDSERVE_STATE", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state"


def run(*arguments: str) -> int:
    return main(["local", *arguments])


def test_a_kind_cluster_from_up_to_down(
    engine: FakeEngine, state: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*UP, "--devices", "4", "--node-grace", "10") == 0
    said = capsys.readouterr()
    # Only what a script reads is on standard output.
    assert said.out == f"export KUBECONFIG={state / 'c' / 'kubeconfig'}\n"
    assert "8 fake devices huawei.com/Ascend910 on 2 workers" in said.err
    made = yaml.safe_load((state / "c" / "kind-config.yaml").read_text())
    assert "node-monitor-grace-period: 10s" in "".join(made["kubeadmConfigPatches"])

    assert run("status", "--name", "c", "-o", "json") == 0
    status = json.loads(capsys.readouterr().out)
    assert (status["name"], status["nodesAre"], status["running"]) == ("c", "kind", True)
    assert [n["devices"] for n in status["nodes"]] == [0, 4, 4]
    assert run("status", "--name", "c", "--kubeconfig") == 0
    assert capsys.readouterr().out == f"{state / 'c' / 'kubeconfig'}\n"
    assert run("status", "--name", "c") == 0
    assert "c-worker2" in capsys.readouterr().out

    assert run("down", "--name", "c") == 0
    assert "cluster 'c': ended" in capsys.readouterr().err
    assert run("status", "--name", "c") == 1
    assert "there is no cluster 'c'" in capsys.readouterr().err
    assert run("down", "--name", "c") == 0
    assert "there was none" in capsys.readouterr().err


def test_devices_of_a_named_cluster(engine: FakeEngine, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*UP) == 0
    capsys.readouterr()
    assert run("devices", "--name", "c", "--resource", "nvidia.com/gpu", "--devices", "2") == 0
    assert "c-worker2" in capsys.readouterr().out
    worker = engine.api.objects(NODES)[-1]
    assert worker["status"]["capacity"]["nvidia.com/gpu"] == "2"

    assert run("devices", "--name", "c", "--node", "c-worker", "--unhealthy", "0,1") == 0
    assert capsys.readouterr().out == "c-worker: unhealthy devices: 0, 1\n"
    assert run("devices", "--name", "c", "--node", "c-worker", "--healthy", "0,1") == 0
    assert capsys.readouterr().out == "c-worker: unhealthy devices: none\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("devices", "--node", "n"), "--node NAME goes with --unhealthy IDS or --healthy IDS"),
        (("devices", "--unhealthy", "1"), "--node NAME goes with"),
        (("devices", "--name", "nowhere"), "there is no cluster 'nowhere'"),
        (("devices",), "say which with --name or --kubeconfig"),
        (("devices", "--kubeconfig", "/no/file"), "/no/file is not a file"),
        (("up", "--image", "a"), "process nodes have no images"),
        (("up", "--nodes", "kind", "--config", "absent.yaml"), "absent.yaml: No such file"),
        (("up", "--nodes", "kind", "--images", "absent.json"), "`make images` writes it"),
    ],
)
def test_mistakes_are_named(
    arguments: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "arguments", "message"),
    [
        (PLAN, UP, "cluster 'c' has process nodes; end it first"),
        ("kind.json", ("up", "--name", "c"), "cluster 'c' has kind nodes; end it first"),
    ],
)
def test_a_name_is_of_one_sort(
    file: str,
    arguments: tuple[str, ...],
    message: str,
    state: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (state / "c").mkdir(parents=True)
    (state / "c" / file).write_text("{}")
    assert run(*arguments) == 1
    assert message in capsys.readouterr().err
