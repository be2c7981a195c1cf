"""The command that builds images: its table, its names, its errors. The engine is a script."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from hack.images import build, prometheus
from hack.images.containers import Image, ImagesError, find_engine
from hack.images.summary import Built, document, table

from localcluster.binaries import prometheus_tag

BASE = Image("python:3.12-slim", "b" * 64, 100 << 20)


def built() -> list[Built]:
    return [
        Built(
            Image("reg.example/pdserve/engine:0.1.0", "e" * 64, 196 << 20, "", "amd64"), BASE, 7.25
        ),
        Built(Image("prom/prometheus:v3.15.0", "f" * 64, 70 << 20), None, 0.0),
    ]


def test_the_table_tells_what_is_shared() -> None:
    assert table(built()).splitlines() == [
        "image                               MiB  of base   own  seconds  base",
        "reg.example/pdserve/engine:0.1.0  196.0    100.0  96.0      7.2  python:3.12-slim",
        "prom/prometheus:v3.15.0            70.0      0.0  70.0      0.0  -",
    ]


def test_scripts_read_the_same_as_json() -> None:
    engine, other = document(built(), 12.34)["images"]
    assert engine == {
        "name": "reg.example/pdserve/engine", "tag": "0.1.0", "id": "e" * 64,
        "bytes": 196 << 20, "own_bytes": 96 << 20, "base": "python:3.12-slim", "seconds": 7.2,
        "architecture": "amd64",
    }  # fmt: skip
    assert other["base"] is None
    assert document([], 12.34) == {"images": [], "seconds": 12.3}


@pytest.mark.parametrize(
    ("registry", "want"),
    [
        ("", "pdserve/engine:1"),
        ("reg.example:5000/team", "reg.example:5000/team/pdserve/engine:1"),
        ("reg.example/", "reg.example/pdserve/engine:1"),
    ],
)
def test_names(registry: str, want: str) -> None:
    assert build.reference(registry, "engine", "1") == want


def test_an_unknown_target_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--only", "engine,router"])
    assert "router: choose from operator, gateway, engine" in capsys.readouterr().err


def test_the_revision_is_the_last_commit_that_changed_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*argv: str) -> str:
        identity = ("-c", "user.name=t", "-c", "user.email=t@example.com")
        done = subprocess.run(
            ["git", *identity, *argv], cwd=tmp_path, capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def commit(path: str) -> str:
        file = tmp_path / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(path)
        git("add", path)
        git("commit", "-q", "-m", path)
        return git("rev-parse", "HEAD")

    git("init", "-q")
    assert build.revision(tmp_path) == ""
    code = commit("operator/pdserve/a.py")
    commit("docs/a.md")
    assert build.revision(tmp_path) == code
    (tmp_path / "operator" / "pdserve" / "b.py").touch()
    assert build.revision(tmp_path) == f"{code}-dirty"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert build.revision(tmp_path) == "", "no git on this machine"


def tool(folder: Path, name: str, script: str) -> dict[str, str]:
    """An environment in which `name` is this shell script."""
    program = folder / name
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    return {"PATH": f"{folder}:/usr/bin:/bin"}


def test_without_an_engine_each_tools_reason_is_reported(tmp_path: Path) -> None:
    tool(tmp_path, "docker", "echo 'Cannot connect to the Docker daemon' >&2; exit 1")
    with pytest.raises(ImagesError) as caught:
        find_engine(None, {"PATH": str(tmp_path)})
    said = str(caught.value)
    assert "- docker: Cannot connect to the Docker daemon" in said
    assert "- podman: not installed" in said
    assert "DOCKER_HOST" in said


def test_podman_is_taken_where_only_it_answers(tmp_path: Path) -> None:
    tool(tmp_path, "docker", "exit 1")
    assert find_engine(None, tool(tmp_path, "podman", "exit 0")).tool == "podman"


FAKE_DOCKER = """
case "$1 $2" in
  "buildx version") exit {buildx} ;;
  "image inspect") exit 1 ;;
esac
[ "$1" = build ] && {{ echo "buildkit=$DOCKER_BUILDKIT $*"; exit {build}; }}
exit 0
"""


@pytest.mark.parametrize(("buildx", "want"), [(0, "buildkit= "), (1, "buildkit=0 ")])
def test_the_old_builder_is_asked_for_where_the_new_one_is_missing(
    tmp_path: Path, buildx: int, want: str
) -> None:
    env = tool(tmp_path, "docker", FAKE_DOCKER.format(buildx=buildx, build=0))
    log = tmp_path / "logs" / "build.log"
    find_engine("docker", env | {"PIP_INDEX_URL": "https://example.com"}).build(
        "pdserve/engine:1", tmp_path, log, dockerfile=tmp_path / "Dockerfile", target="engine",
        arguments={"WHEELS": "index"}, passed_on=("PIP_INDEX_URL", "PIP_TRUSTED_HOST"),
    )  # fmt: skip
    said = log.read_text()
    assert said.startswith(want)
    assert "--target engine --build-arg WHEELS=index --build-arg PIP_INDEX_URL " in said
    # A value may hold a password: the engine's client takes it from the environment.
    assert "https://example.com" not in said
    assert "PIP_TRUSTED_HOST" not in said


def test_a_failed_build_shows_the_end_of_its_log(tmp_path: Path) -> None:
    env = tool(tmp_path, "docker", FAKE_DOCKER.format(buildx=0, build=3))
    log = tmp_path / "build.log"
    with pytest.raises(
        ImagesError, match=r"building x:1: .* failed \(exit 3\):\n  \| buildkit"
    ) as e:
        find_engine("docker", env).build("x:1", tmp_path, log, dockerfile=tmp_path / "Dockerfile")
    assert str(log) in str(e.value)


def test_a_pull_that_fails_says_why(tmp_path: Path) -> None:
    env = tool(tmp_path, "docker", "[ $1 = pull ] && { echo 'no such host' >&2; exit 1; }; exit 0")
    with pytest.raises(ImagesError, match=r"a:1 cannot be pulled: no such host$"):
        find_engine("docker", env).pull("a:1")


def test_images_are_read_from_inspect(tmp_path: Path) -> None:
    labels = {"org.opencontainers.image.base.name": "python:3.12-slim"}
    found = json.dumps([{"Id": "sha256:abc", "Size": 5, "Config": {"Labels": labels}}])
    env = tool(tmp_path, "docker", f"cat <<'E'\n{found}\nE")
    assert find_engine("docker", env).find("a:1") == Image("a:1", "abc", 5, "python:3.12-slim")


def test_prometheus_is_the_version_of_local_clusters() -> None:
    assert prometheus_tag("v0.315.0") == "v3.15.0"
    assert prometheus_tag("v0.302.1") == "v3.2.1"


def elf(*types: int, wide: bool = True) -> bytes:
    """The head of a program with program headers of these types."""
    start, size = (64, 56) if wide else (52, 32)
    head = bytearray(start)
    head[:6] = b"\x7fELF" + bytes([2 if wide else 1, 1])
    fields = ((32, 8), (54, 2), (56, 2)) if wide else ((28, 4), (42, 2), (44, 2))
    for (at, width), value in zip(fields, (start, size, len(types)), strict=True):
        head[at : at + width] = value.to_bytes(width, "little")
    return bytes(head) + b"".join(t.to_bytes(4, "little").ljust(size, b"\0") for t in types)


@pytest.mark.parametrize("wide", [True, False])
def test_programs_that_need_a_loader_get_a_base(tmp_path: Path, wide: bool) -> None:
    program = tmp_path / "program"
    program.write_bytes(elf(6, 1, 3, wide=wide))
    assert prometheus.dynamic(program)
    program.write_bytes(elf(6, 1, 1, wide=wide))
    assert not prometheus.dynamic(program)
    program.write_text("#!/bin/sh")
    with pytest.raises(ImagesError, match="no Linux program"):
        prometheus.dynamic(program)


def test_help_has_examples() -> None:
    script = Path(build.__file__)
    done = subprocess.run(
        [sys.executable, script, "--help"], capture_output=True, text=True, check=True
    )
    assert "examples:" in done.stdout
