"""What Go keeps of builds: shared within a run, gone after it, left alone where the user chose."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.cluster import eventually

from localcluster import binaries, gobuild, store
from localcluster.errors import LocalError
from localcluster.releases import ENV_LOCK

ROOT = Path(__file__).resolve().parents[3]
GO = """#!{python}
# A Go that keeps what it made in its caches, read-only as Go makes modules.
import json, os, pathlib, signal, sys, time
if sys.argv[1] == "version":
    print("go version go1.26.8 linux/amd64")
elif sys.argv[1:] == ["env", "GOENV"]:
    print(os.environ["GOENV_FILE"])
else:
    caches = {{n: os.environ.get(n) for n in ("GOCACHE", "GOMODCACHE", "GOTMPDIR")}}
    with open({log!r}, "a") as log:
        log.write(json.dumps(caches) + "\\n")
    for place in filter(None, caches.values()):
        module = pathlib.Path(place) / "example.com" / "module@v1"
        if not module.exists():
            module.mkdir(parents=True)
            (module / "code.go").write_text("package module")
            module.chmod(0o555)
    if os.environ.get("HANG"):
        pathlib.Path({log!r} + ".pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
        time.sleep(600)
    if os.environ.get("FAIL"):
        sys.exit("cannot build")
    out = sys.argv[sys.argv.index("-o") + 1] if "-o" in sys.argv else os.environ["GOBIN"] + "/helm"
    pathlib.Path(out).write_text("#!/bin/sh")
    os.chmod(out, 0o755)
"""


class Machine:
    """A machine with a Go that plays and an empty cache."""

    def __init__(self, folder: Path) -> None:
        self.cache = folder / "cache"
        self.environment_file = folder / "goenv"
        self._log = folder / "log"
        go = folder / "path" / "go"
        go.parent.mkdir()
        go.write_text(GO.format(python=sys.executable, log=str(self._log)))
        go.chmod(0o755)
        pins = folder / "pins.json"
        pins.write_text("{}")
        self.variables = {
            "PATH": f"{go.parent}:/usr/bin:/bin", "PDSERVE_CACHE": str(self.cache),
            "GOENV_FILE": str(self.environment_file), ENV_LOCK: str(pins),
        }  # fmt: skip

    @property
    def builds(self) -> list[dict[str, str | None]]:
        """The caches that each build was given."""
        return [json.loads(line) for line in self._log.read_text().splitlines()]

    @property
    def go_pid(self) -> int | None:
        """Process of a Go that hangs."""
        file = self._log.with_name("log.pid")
        return int(file.read_text() or 0) or None if file.exists() else None

    def temporary(self) -> list[Path]:
        """Folders in the cache that are no program's."""
        return list(self.cache.glob(".*"))


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    for name in (
        binaries.ENV_KUBE, binaries.ENV_KUBEBUILDER, binaries.ENV_HELM, binaries.ENV_PROMETHEUS,
        gobuild.ENV_KEEP, "GOCACHE", "GOMODCACHE", "GOTMPDIR",
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in made.variables.items():
        monkeypatch.setenv(name, value)
    return made


def test_the_builds_of_one_run_share_caches_that_go_with_it(machine: Machine) -> None:
    with binaries.Finder() as finder:
        finder.kube()
        finder.helm()
        finder.prometheus()
        [folder] = machine.temporary()
        assert (folder / "GOMODCACHE" / "example.com").is_dir()
    first, *others = machine.builds
    assert len(others) == 2
    assert others == [first, first]
    assert set(map(type, first.values())) == {str}
    assert machine.temporary() == []


def test_a_build_that_fails_leaves_nothing(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FAIL", "1")
    with pytest.raises(LocalError, match="cannot build"):
        binaries.helm()
    assert len(machine.builds) == 2, "it was tried once more"
    assert machine.temporary() == []


@pytest.mark.parametrize("variable", ["GOCACHE", "GOMODCACHE"])
@pytest.mark.parametrize("written", [False, True])
def test_a_place_that_the_user_chose_is_used_and_kept(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, written: bool
) -> None:
    mine = tmp_path / "mine"
    if written:
        machine.environment_file.write_text(f"GOFLAGS=-x\n{variable}={mine}\n")
    else:
        monkeypatch.setenv(variable, str(mine))
    binaries.helm()
    [given] = machine.builds
    assert given.pop(variable) == (None if written else str(mine)), "Go reads its own file"
    assert all(place and place.startswith(str(machine.cache)) for place in given.values())
    assert written or (mine / "example.com").is_dir()
    assert machine.temporary() == []


def test_caches_are_gos_own_where_that_is_asked_for(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(gobuild.ENV_KEEP, "1")
    binaries.helm()
    assert machine.builds == [{"GOCACHE": None, "GOMODCACHE": None, "GOTMPDIR": None}]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, None])
def test_an_interrupted_run_leaves_nothing(machine: Machine, number: signal.Signals | None) -> None:
    """None: first Ctrl-C, then what make's shell sends to its jobs, as `make programs` gets them.

    SIGINT is ignored when it starts, as shells do with jobs in the background.
    """
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "HANG": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "localcluster.programs"], env=environment,
        stderr=subprocess.DEVNULL, start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    try:
        eventually("Go builds", lambda: machine.go_pid is not None)
        go = machine.go_pid
        for signal_number in (number,) if number else (signal.SIGINT, signal.SIGTERM):
            run.send_signal(signal_number)
        status = run.wait(60)
    finally:
        run.kill()
        run.wait()
    assert status in ([128 + number] if number else [128 + signal.SIGINT, 128 + signal.SIGTERM])
    assert machine.temporary() == []
    assert not Path(f"/proc/{go}").exists()


def test_what_a_killed_run_left_the_next_one_removes(machine: Machine) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "operator"), "HANG": "1"}
    run = subprocess.Popen(
        [sys.executable, "-m", "localcluster.programs"], env=environment,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    try:
        eventually("Go builds", lambda: machine.go_pid is not None)
    finally:
        run.kill()
        run.wait()
    assert len(machine.temporary()) == 2, "Go's caches, and the half program"
    eventually("Go ends", lambda: not Path(f"/proc/{machine.go_pid}").exists())
    binaries.kube()
    assert machine.temporary() == []


def test_the_folder_of_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    with store.scratch_folder(tmp_path, "go") as first:
        with store.scratch_folder(tmp_path, "go") as second:
            assert first.is_dir()
            assert second != first
        assert first.is_dir()
    assert [p.name for p in tmp_path.iterdir()] == ["go.lock"]
