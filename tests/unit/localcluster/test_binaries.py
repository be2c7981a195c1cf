"""Where programs come from, in which order, and what is said when they come from nowhere."""

from __future__ import annotations

import platform
import threading
from contextlib import closing
from pathlib import Path

import pytest

from localcluster import binaries, gobuild
from localcluster.errors import LocalError, Progress
from localcluster.releases import ENV_LOCK

VERSION = "v1.36.3"


def program(path: Path, body: str = "exit 0") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture(autouse=True)
def bare_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No programs named, no releases pinned, an empty cache, an empty PATH."""
    pins = tmp_path / "pins.json"
    pins.write_text("{}")
    monkeypatch.setenv(ENV_LOCK, str(pins))
    for name in (
        binaries.ENV_KUBE, binaries.ENV_KUBEBUILDER, binaries.ENV_HELM, binaries.ENV_PROMETHEUS,
        binaries.ENV_KIND,
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    cache = tmp_path / "cache"
    monkeypatch.setenv("PDSERVE_CACHE", str(cache))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    return cache


def fake_go(tmp_path: Path, body: str, version: str = "go1.26.8") -> None:
    program(
        tmp_path / "path" / "go",
        f'case "$1" in version) echo "go version {version} x"; exit;; env) exit;; esac\n{body}',
    )


def build(recipe: gobuild.Recipe, cache: Path, progress: Progress) -> Path:
    with closing(gobuild.Builds(cache, progress)) as builds:
        return builds.build(recipe)


WRITE_OUTPUT = 'while [ "$1" != -o ]; do shift; done; echo "#!/bin/sh" > "$2"; chmod +x "$2"'


def test_a_folder_named_by_the_environment_comes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in binaries.ALL_PROGRAMS:
        program(tmp_path / "kube" / name)
    monkeypatch.setenv("PDSERVE_KUBE_BIN", str(tmp_path / "kube"))
    found = binaries.kube()
    assert found.path("etcd") == tmp_path / "kube" / "etcd"
    assert found.source == "$PDSERVE_KUBE_BIN"


def test_a_multi_call_binary_named_by_the_environment_gets_links(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    binary = program(tmp_path / "kube-all")
    monkeypatch.setenv("PDSERVE_KUBE_BIN", str(binary))
    assert binaries.kube().path("kube-scheduler").resolve() == binary
    assert binaries.kube().path("etcd").name == "etcd"


def test_a_folder_of_ours_that_lacks_a_program_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program(tmp_path / "kube" / "etcd")
    monkeypatch.setenv("PDSERVE_KUBE_BIN", str(tmp_path / "kube"))
    with pytest.raises(LocalError, match=r"PDSERVE_KUBE_BIN=.*: no kube-apiserver there"):
        binaries.kube(programs=binaries.API_PROGRAMS)


def test_envtest_serves_api_tests_and_is_passed_over_for_whole_clusters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("etcd", "kube-apiserver", "kubectl"):
        program(tmp_path / "envtest" / name)
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(tmp_path / "envtest"))
    assert binaries.kube(programs=binaries.API_PROGRAMS).source == "$KUBEBUILDER_ASSETS"
    fake_go(tmp_path, WRITE_OUTPUT)
    assert binaries.kube().source == "built from Go modules"


def test_a_build_happens_once_and_tells_what_it_does(tmp_path: Path) -> None:
    fake_go(tmp_path, f'echo built >> "{tmp_path}/builds"; {WRITE_OUTPUT}')
    lines: list[str] = []
    first = binaries.kube(lines.append)
    assert first.source == "built from Go modules"
    assert "etcd, kube-apiserver" in lines[1]
    assert "about 4 min, once per machine" in lines[1]
    again = binaries.kube(lines.append)
    assert again.source == "cache"
    assert again.directory == first.directory
    assert (tmp_path / "builds").read_text() == "built\n"


def test_concurrent_builds_of_the_same_thing_wait_for_one(
    tmp_path: Path, bare_machine: Path
) -> None:
    gate = tmp_path / "gate"
    fake_go(
        tmp_path,
        f'echo built >> "{tmp_path}/builds"; while [ ! -e {gate} ]; do sleep 0.05; done;'
        f"{WRITE_OUTPUT}",
    )
    module = tmp_path / "module"
    module.mkdir()
    recipe = gobuild.Recipe("tool", "v1", "a tool", 1, module, ".", "-s")
    waits = threading.Event()

    def second_says(line: str) -> None:
        if "another process is making tool-v1" in line:
            waits.set()
            gate.touch()

    began = threading.Event()
    first = threading.Thread(target=lambda: build(recipe, bare_machine, lambda _: began.set()))
    first.start()
    assert began.wait(60)
    built = build(recipe, bare_machine, second_says)
    first.join(10)
    assert waits.is_set()
    assert (built / "tool").exists()
    assert (tmp_path / "builds").read_text() == "built\n"


def test_a_build_that_failed_once_is_tried_once_more(tmp_path: Path, bare_machine: Path) -> None:
    failed = tmp_path / "failed"
    fake_go(
        tmp_path,
        f'[ -e {failed} ] || {{ touch {failed}; echo "proxy: 502" >&2; exit 1; }}; {WRITE_OUTPUT}',
    )
    module = tmp_path / "module"
    module.mkdir()
    recipe = gobuild.Recipe("tool", "v1", "a tool", 1, module, ".", "-s")
    said: list[str] = []
    assert (build(recipe, bare_machine, said.append) / "tool").exists()
    assert any("once more" in line and "proxy: 502" in line for line in said)


def test_a_failing_build_leaves_nothing_and_shows_the_compiler(
    tmp_path: Path, bare_machine: Path
) -> None:
    fake_go(tmp_path, "echo main.go:7: undefined: frobnicate >&2; exit 1")
    module = tmp_path / "module"
    module.mkdir()
    recipe = gobuild.Recipe("tool", "v1", "a tool", 1, module, ".", "-s")
    with pytest.raises(LocalError, match=r"building tool: .*exit 1(?s:.*)undefined: frob"):
        build(recipe, bare_machine, lambda _: None)
    assert [p.name for p in bare_machine.iterdir() if p.is_dir()] == []


@pytest.mark.parametrize(
    ("version", "message"),
    [(None, "Go is not installed"), ("go1.20.3", "Go 1.21 or newer is needed")],
)
def test_without_a_usable_go_prometheus_says_what_to_do(
    tmp_path: Path, version: str | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    if version:
        fake_go(tmp_path, "exit 1", version)
    with pytest.raises(LocalError, match=message) as error:
        binaries.prometheus()
    assert "or set PDSERVE_PROMETHEUS to the prometheus program" in str(error.value)


def test_a_prometheus_on_path_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A distribution's has no Kubernetes discovery: using it would fail much later, in a pod.
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    program(tmp_path / "path" / "prometheus")
    with pytest.raises(LocalError, match="Go is not installed"):
        binaries.prometheus()


def test_path_serves_helm_and_the_environment_wins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = program(tmp_path / "path" / "helm")
    assert binaries.helm() == on_path
    named = program(tmp_path / "mine" / "helm3")
    monkeypatch.setenv("PDSERVE_HELM", str(named))
    assert binaries.helm() == named
    monkeypatch.setenv("PDSERVE_HELM", str(tmp_path / "absent"))
    with pytest.raises(LocalError, match="not a program that can be run"):
        binaries.helm()


def test_kind_comes_from_the_environment_the_cache_path_or_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install = (
        'echo "$@" > "$GOBIN/../args"; echo "#!/bin/sh" > "$GOBIN/kind"; chmod +x "$GOBIN/kind"'
    )
    fake_go(tmp_path, install)
    built = binaries.kind()
    assert built.name == "kind"
    assert f"sigs.k8s.io/kind@{binaries.KIND_VERSION}" in (built.parents[1] / "args").read_text()
    program(tmp_path / "path" / "kind")
    assert binaries.kind() == built, "the cache comes before PATH"
    monkeypatch.setenv("PDSERVE_CACHE", str(tmp_path / "other-cache"))
    assert binaries.kind() == tmp_path / "path" / "kind"
    monkeypatch.setenv("PDSERVE_KIND", str(program(tmp_path / "mine" / "kind")))
    assert binaries.kind() == tmp_path / "mine" / "kind"


def test_without_go_and_release_kind_says_what_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    with pytest.raises(LocalError, match=r"kind v\S+ is not used(?s:.*)Go is not inst") as error:
        binaries.kind()
    assert "or set PDSERVE_KIND to the kind program" in str(error.value)


def test_the_cache_name_changes_with_the_recipe(tmp_path: Path) -> None:
    (tmp_path / "go.sum").write_text("a")
    one = binaries.kube_recipe(tmp_path).cache_name
    (tmp_path / "go.sum").write_text("b")
    assert binaries.kube_recipe(tmp_path).cache_name != one
    assert one.startswith(f"kube-{VERSION}-{platform.machine()}-")
