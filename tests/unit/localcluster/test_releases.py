"""Official releases: which are used, and what is said and done when they are not."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.release_mirror import Mirror, all_releases, mirror

from localcluster import binaries, download, programs, releases, store
from localcluster.download import ENV_MIRROR
from localcluster.errors import LocalError
from localcluster.releases import ENV_LOCK, Releases, read_pins

Capture = pytest.CaptureFixture[str]
ROOT = Path(__file__).resolve().parents[3]
SAYS = 'case "$1" in version) echo "go version go1.26.8 x"; exit;; env) exit;; esac'
BUILD = (
    'echo "$@" >> "$0.log"; if [ -n "$GOBIN" ]; then out="$GOBIN/helm"; else '
    'while [ "$1" != -o ]; do shift; done; out="$2"; fi; echo "#!/bin/sh" > "$out"; chmod +x "$out"'
)


def program(name: str) -> bytes:
    return f"#!/bin/sh\necho {name}\n".encode()


@pytest.fixture
def published(tmp_path: Path) -> Iterator[Mirror]:
    """A mirror with all releases, pinned."""
    with mirror(tmp_path / "mirror") as made:
        for release in all_releases():
            for asset in release.assets:
                made.put(asset, program(asset.program))
        yield made


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, published: Mirror, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no programs named or on PATH; releases come from the mirror alone."""
    for name in (
        binaries.ENV_KUBE, binaries.ENV_KUBEBUILDER, binaries.ENV_HELM, binaries.ENV_PROMETHEUS,
        binaries.ENV_KIND,
    ):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    for name, value in published.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PDSERVE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path / 'path'}:/usr/bin:/bin")
    return tmp_path / "cache"


@pytest.fixture
def go(tmp_path: Path) -> Path:
    """A Go that builds in no time; the file it returns has one line per build."""
    path = tmp_path / "path" / "go"
    path.parent.mkdir()
    path.write_text(f"#!/bin/sh\n{SAYS}\n{BUILD}\n")
    path.chmod(0o755)
    return path.with_name("go.log")


def test_a_pinned_release_comes_before_a_build_and_is_fetched_once(
    go: Path, published: Mirror, machine: Path
) -> None:
    found = binaries.kube()
    assert found.source == "official release"
    for name in binaries.ALL_PROGRAMS:
        said = subprocess.run([found.path(name)], capture_output=True, text=True, check=True)
        assert said.stdout == f"{name}\n"
    assert len(published.asked) == len(binaries.ALL_PROGRAMS)
    assert binaries.kube().source == "cache"
    for name, path in (
        ("helm", binaries.helm()),
        ("prometheus", binaries.prometheus()),
        ("kind", binaries.kind()),
    ):
        assert path.read_bytes() == program(name)
        assert os.access(path, os.X_OK)
    assert len(published.asked) == len(binaries.ALL_PROGRAMS) + 3
    assert not go.exists()
    assert [
        p.name for p in machine.rglob("*") if p.name.startswith(".") or "download" in p.name
    ] == []


def test_equal_programs_are_stored_once(published: Mirror, machine: Path) -> None:
    """Also those of two versions: the second one brings a kubectl of its own and the same etcd."""
    release = binaries.kube_release()
    for asset in release.assets:
        published.put(asset, program("all of them"))
    first = binaries.kube().directory
    assert len({(first / name).stat().st_ino for name in binaries.ALL_PROGRAMS}) == 1

    newer = releases.kubernetes("v1.99.0", "v3.99.0", releases.architecture())
    for asset in newer.assets:
        published.put(asset, program("kubectl" if asset.program == "kubectl" else "all of them"))
    second = Releases().fetch(newer, machine, lambda line: None)
    assert (second / "etcd").stat().st_ino == (first / "etcd").stat().st_ino
    assert (second / "kubectl").stat().st_ino != (first / "kubectl").stat().st_ino
    for name in binaries.ALL_PROGRAMS:
        said = subprocess.run([second / name], capture_output=True, text=True, check=True)
        assert said.stdout == ("kubectl\n" if name == "kubectl" else "all of them\n")
    store.remove(first.parent)
    assert (second / "etcd").read_bytes() == program("all of them")


@pytest.mark.parametrize(
    ("case", "content", "mode"),
    [("other content of this size", "bb", 0o755), ("another mode", "aa", 0o700)],
)
def test_programs_that_differ_are_stored_apart(
    tmp_path: Path, case: str, content: str, mode: int
) -> None:
    def fill(folder: Path) -> None:
        for name, text, bits in (("one", "aa", 0o755), ("two", content, mode)):
            (folder / "bin" / name).write_text(text)
            (folder / "bin" / name).chmod(bits)

    found = store.make(tmp_path, "both", ("one", "two"), fill, lambda line: None)
    assert [(found / n).stat().st_nlink for n in ("one", "two")] == [1, 1], case
    assert (found / "two").read_text() == content
    assert (found / "two").stat().st_mode & 0o777 == mode


def test_a_file_system_without_links_gets_copies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    def fill(folder: Path) -> None:
        for name in ("one", "two"):
            (folder / "bin" / name).write_text("aa")

    monkeypatch.setattr(os, "link", refuse)
    found = store.make(tmp_path, "both", ("one", "two"), fill, lambda line: None)
    assert sorted(path.name for path in found.iterdir()) == ["one", "two"]
    assert [(found / n).read_text() for n in ("one", "two")] == ["aa", "aa"]


def test_releases_need_no_go(machine: Path) -> None:
    assert binaries.prometheus().read_bytes() == program("prometheus")


def test_every_program_of_a_cold_machine_is_downloaded(published: Mirror) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "localcluster.programs"],
        env={**os.environ, "PYTHONPATH": str(ROOT / "operator")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert len(published.asked) == 7
    assert "official release" in done.stdout


def test_kind_comes_along_where_it_is_asked_for(published: Mirror, capsys: Capture) -> None:
    assert programs.main() == 0
    assert "kind " not in capsys.readouterr().out
    assert programs.main(with_kind=True) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("kind ")]
    assert Path(line.split()[1]).read_bytes() == program("kind")
    assert len(published.asked) == 8


def test_without_a_pin_one_line_says_so_and_nothing_is_asked(go: Path, published: Mirror) -> None:
    published.lock.write_text("{}")
    said: list[str] = []
    assert binaries.helm(said.append).exists()
    assert "built helm" in said[-2]
    [line] = [line for line in said if "release" in line]
    assert "helm v3.22.0 is not used: no SHA-256 is pinned for helm on " in line
    assert published.asked == []
    assert len(go.read_text().splitlines()) == 1


def test_a_file_that_is_not_the_pinned_one_is_never_used(
    go: Path, published: Mirror, machine: Path
) -> None:
    scheduler = binaries.kube_release().assets[3]
    published.put(scheduler, b"changed", pin=False)
    said: list[str] = []
    assert binaries.kube(said.append).source == "built from Go modules"
    [line] = [line for line in said if "is not the pinned file" in line]
    assert scheduler.url.rpartition("/")[2] in line
    assert not [p for p in machine.glob("**/bin/*") if p.read_bytes() == b"changed"]
    assert not list(machine.glob("*release*/bin"))


def test_another_pin_is_another_release(published: Mirror) -> None:
    first = binaries.helm()
    published.put(binaries.helm_release().assets[0], b"#!/bin/sh\necho better\n")
    second = binaries.helm()
    assert second != first
    assert second.read_bytes().endswith(b"better\n")


def test_a_file_that_is_missing_is_built_and_its_host_stays_in_use(
    go: Path, published: Mirror
) -> None:
    etcd = binaries.kube_release().assets[0]
    published.file(etcd.url).unlink()
    with binaries.Finder() as finder:
        assert finder.kube().source == "built from Go modules"
        assert finder.prometheus().read_bytes() == program("prometheus"), "the same host"


@pytest.mark.parametrize("kind_of_failure", ["refuses", "silent", "stalls", "breaks off"])
def test_a_host_that_failed_once_is_not_asked_again_in_this_run(
    go: Path, kind_of_failure: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(download, "STALL_SECONDS", 0.2)
    with BadHost(kind_of_failure) as host:
        monkeypatch.setenv(ENV_MIRROR, host.url)
        said: list[str] = []
        with binaries.Finder(said.append) as finder:
            finder.kube()
            finder.helm()
            finder.prometheus()
        assert host.connections <= 1
    assert len([line for line in said if line.startswith("downloading")]) == 1
    assert len([line for line in said if "failed before" in line]) == 2
    assert len(go.read_text().splitlines()) == 3


def test_a_name_that_is_looked_up_for_ever_costs_the_time_limit_once(
    go: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over = threading.Event()
    monkeypatch.setattr(download, "CONNECT_SECONDS", 0.2)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: over.wait(60))
    monkeypatch.setenv(ENV_MIRROR, "http://releases.example")
    said: list[str] = []
    began = time.monotonic()
    with binaries.Finder(said.append) as finder:
        finder.helm()
        finder.prometheus()
    over.set()
    assert time.monotonic() - began < 50
    assert len([line for line in said if "no connection in 0.2 s" in line]) == 2
    assert len([line for line in said if line.startswith("downloading")]) == 1


def test_a_long_download_says_how_far_it_is(
    published: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "SAY_EVERY_SECONDS", 0.0)
    asset = binaries.kind_release().assets[0]
    published.put(asset, b"x" * 3_000_000)
    said: list[str] = []
    Releases().fetch(binaries.kind_release(), tmp_path / "cache", said.append)
    assert said[0] == f"downloading {published.url}/{asset.url.partition('://')[2]}"
    assert said[-1] == f"downloading {asset.url.rpartition('/')[2]}: 3 of 3 MB"


def test_a_download_slower_than_a_build_ends(
    published: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "FILE_SECONDS", -1.0)
    with pytest.raises(LocalError, match=r"cannot download .*: only 0 of 0 MB in -1 s"):
        Releases().fetch(binaries.helm_release(), tmp_path / "cache", lambda _: None)


def test_an_archive_without_the_program_is_named(published: Mirror, tmp_path: Path) -> None:
    [asset] = binaries.helm_release().assets
    wrong = releases.Asset(asset.url, asset.sums, asset.program, "elsewhere/helm")
    published.put(wrong, b"helm")
    with pytest.raises(LocalError, match=r"no linux-\w+/helm in the archive"):
        Releases().fetch(binaries.helm_release(), tmp_path / "cache", lambda _: None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "Expecting value"),
        ("[]", "not a map"),
        ('{"https://x/y": 5}', "not a map"),
        ('{"https://x/y": "abc"}', "not a map"),
        (json.dumps({"https://x/y": "G" * 64}), "not a map"),
    ],
)
def test_a_lock_file_of_another_form_is_named(tmp_path: Path, content: str, message: str) -> None:
    lock = tmp_path / "lock.json"
    lock.write_text(content)
    with pytest.raises(LocalError, match=f"lock.json: .*{message}"):
        read_pins(lock)


def test_a_lock_file_that_is_not_there_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_LOCK, str(tmp_path / "absent.json"))
    with pytest.raises(LocalError, match=r"absent\.json"):
        binaries.helm()


class BadHost:
    """A host that does not do what it should; `connections` counts what it accepted."""

    def __init__(self, failure: str) -> None:
        self._failure = failure
        self.connections = 0
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._held: list[socket.socket] = []
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def __enter__(self) -> BadHost:
        if self._failure == "refuses":
            self._socket.close()
        else:
            threading.Thread(target=self._serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()
        for held in self._held:
            held.close()

    def _serve(self) -> None:
        head = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            self.connections += 1
            self._held.append(connection)
            if self._failure == "silent":
                continue
            connection.recv(4096)
            connection.sendall(head + b"x" * 10)
            if self._failure == "breaks off":
                connection.close()
