"""The local control plane: starts, serves, leaves nothing behind, tells what went wrong."""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from tests.support.cluster import eventually, running_control_plane

from localcluster import binaries, processes
from localcluster.controlplane import Components, ControlPlane, ControlPlaneSettings
from localcluster.errors import LocalError

# Most tests start control planes themselves.
pytestmark = [pytest.mark.cluster, pytest.mark.timeout(400)]


def kubectl(plane: ControlPlane, *args: str) -> str:
    program = binaries.kube(programs=("kubectl",)).path("kubectl")
    done = subprocess.run(
        [program, "--kubeconfig", plane.kubeconfig, *args],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_full_control_plane_reconciles_and_stops_without_a_trace(tmp_path: Path) -> None:
    with running_control_plane(tmp_path / "cp", Components.FULL) as plane:
        assert set(plane.pids) == {
            "etcd",
            "kube-apiserver",
            "kube-controller-manager",
            "kube-scheduler",
        }
        assert json.loads(kubectl(plane, "get", "--raw", "/version"))["gitVersion"] == "v1.36.3"
        kubectl(plane, "create", "deployment", "web", "--image=pdserve/engine")
        eventually("a pod per replica", lambda: "web-" in kubectl(plane, "get", "pods", "-o=name"))
        pids = list(plane.pids.values())
    assert plane.pids == {}
    assert [pid for pid in pids if processes.is_alive(pid)] == []


def test_two_control_planes_side_by_side_do_not_see_each_other(tmp_path: Path) -> None:
    with (
        running_control_plane(tmp_path / "a") as one,
        running_control_plane(tmp_path / "b") as two,
    ):
        assert one.server != two.server
        kubectl(one, "create", "namespace", "only-in-one")
        assert "only-in-one" in kubectl(one, "get", "namespaces")
        assert "only-in-one" not in kubectl(two, "get", "namespaces")


def test_unknown_clients_are_refused_and_secrets_are_private(control_plane: ControlPlane) -> None:
    context = ssl.create_default_context(cafile=str(control_plane.ca_file))
    request = urllib.request.Request(
        control_plane.server + "/api/v1/secrets", headers={"Authorization": "Bearer guessed"}
    )
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(request, context=context)
    assert refused.value.code == 401
    assert control_plane.state_dir.stat().st_mode & 0o077 == 0
    assert control_plane.kubeconfig.stat().st_mode & 0o077 == 0


def test_sigkill_of_the_parent_takes_the_children_with_it(tmp_path: Path) -> None:
    code = (
        "import sys, threading, pathlib, json\n"
        "from localcluster.controlplane import *\n"
        "p = ControlPlane(pathlib.Path(sys.argv[1]), components=Components.FULL)\n"
        # started from a thread that ends: the children must live on, until the process dies
        "t = threading.Thread(target=p.start); t.start(); t.join()\n"
        "print(json.dumps(p.pids), flush=True)\n"
        "threading.Event().wait()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "cp")], stdout=subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        pids = list(json.loads(parent.stdout.readline()).values())
        assert len(pids) == 4
        assert all(processes.is_alive(pid) for pid in pids)
    finally:
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
    eventually("no orphans", lambda: not any(processes.is_alive(pid) for pid in pids))


def test_a_component_that_dies_at_start_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("etcd", "kube-apiserver"):
        script = tmp_path / "bin" / program
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\necho disk is on fire >&2\nexit 3\n")
        script.chmod(0o755)
    monkeypatch.setenv("PDSERVE_KUBE_BIN", str(tmp_path / "bin"))
    plane = ControlPlane(tmp_path / "cp", components=Components.API)
    with pytest.raises(LocalError, match=r"etcd ended \(exit 3\)(?s:.*)disk is on fire"):
        plane.start()
    assert plane.pids == {}


def test_a_component_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for program in ("etcd", "kube-apiserver"):
        script = tmp_path / "bin" / program
        script.parent.mkdir(exist_ok=True)
        script.write_text("#!/bin/sh\nexec sleep 600\n")
        script.chmod(0o755)
    monkeypatch.setenv("PDSERVE_KUBE_BIN", str(tmp_path / "bin"))
    plane = ControlPlane(
        tmp_path / "cp",
        components=Components.API,
        settings=ControlPlaneSettings(start_timeout=0.3),
    )
    with pytest.raises(LocalError, match=r"etcd did not answer within 0\.3 s"):
        plane.start()
    assert plane.pids == {}


def test_a_component_that_dies_later_is_noticed(tmp_path: Path) -> None:
    with running_control_plane(tmp_path / "cp") as plane:
        assert plane.failed() is None
        os.kill(plane.pids["etcd"], signal.SIGKILL)
        eventually("the loss is noticed", lambda: plane.failed() is not None)
        assert "etcd ended (killed by signal 9" in (plane.failed() or "")
