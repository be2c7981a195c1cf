"""Images for another architecture than the machine's: built where that is possible, else said."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hack.images import base, build, wheels
from hack.images.base import MACHINES, Python
from hack.images.containers import ImagesError, find_engine
from hack.images.install import read_hashes

ROOT = Path(__file__).resolve().parents[3]
PROBE = {
    "python": [3, 12], "machine": "x86_64", "libc": "glibc", "libc_version": "2.41", "index": True,
}  # fmt: skip
IMAGE = [{"Id": "sha256:abc", "Size": 5, "Config": {}, "Architecture": "arm64"}]
DOCKER = """#!/bin/sh
case "$1 $2" in
  "version --format") echo amd64 ;;
  "buildx version") {buildx} ;;
  "buildx inspect") {buildx} && printf 'Name: x\\nPlatforms: linux/amd64{more}\\n' ;;
  "image inspect") echo '{image}' ;;
  "run --rm") echo '{probe}' ;;
  *build*) echo "$*" >> "{log}" ;;
esac
"""


class Docker:
    """A docker that builds nothing; `builds` are the arguments of its builds."""

    def __init__(self, folder: Path, emulated: str = "", buildx: bool = True) -> None:
        self._log = folder / "log"
        self.folder = folder / "path"
        self.folder.mkdir()
        program = self.folder / "docker"
        program.write_text(
            DOCKER.format(
                buildx="true" if buildx else "exit 1", more=emulated, log=self._log,
                image=json.dumps(IMAGE), probe=json.dumps(PROBE),
            )
        )  # fmt: skip
        program.chmod(0o755)

    @property
    def builds(self) -> list[str]:
        return self._log.read_text().splitlines() if self._log.exists() else []


def made(
    docker: Docker, folder: Path, monkeypatch: pytest.MonkeyPatch, *options: str
) -> tuple[int, list[str]]:
    """Exit status of the command, and the tags it says it has made."""
    monkeypatch.setenv("PATH", f"{docker.folder}:/usr/bin:/bin")
    monkeypatch.delenv("DOCKER_BUILDKIT", raising=False)
    monkeypatch.setattr(build, "OUT", folder / "out")
    status = build.main(["--tool", "docker", "--no-prometheus", "--tag", "1", *options])
    document = json.loads((folder / "out" / "images.json").read_text())
    return status, [f"{i['name']}:{i['tag']}" for i in document["images"]]


def test_the_engines_own_architecture_is_built_when_none_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Docker(tmp_path, ", linux/arm64")
    assert made(docker, tmp_path, monkeypatch) == (
        0, ["pdserve/operator:1", "pdserve/gateway:1", "pdserve/engine:1"],
    )  # fmt: skip
    assert not any("--platform" in line for line in docker.builds)


def test_both_are_built_where_the_engine_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docker = Docker(tmp_path, ", linux/arm64")
    options = ("--arch", "amd64,arm64", "--only", "operator,engine")
    status, tags = made(docker, tmp_path, monkeypatch, *options)
    assert status == 0
    assert tags == [
        "pdserve/operator:1", "pdserve/engine:1",
        "pdserve/operator:1-arm64", "pdserve/engine:1-arm64",
    ]  # fmt: skip
    own, foreign = docker.builds[:2], docker.builds[2:]
    assert all(line.startswith("build --file") and "--platform" not in line for line in own)
    assert all(line.startswith("buildx build --file") for line in foreign)
    assert all(" --load --platform linux/arm64 " in line for line in foreign)
    assert "--tag pdserve/engine:1-arm64" in foreign[1]


@pytest.mark.parametrize("buildx", [True, False], ids=["no emulator", "the older builder"])
def test_where_the_engine_cannot_it_is_said_and_the_rest_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, buildx: bool,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    docker = Docker(tmp_path, buildx=buildx)
    status, tags = made(docker, tmp_path, monkeypatch, "--arch", "arm64,amd64", "--only", "engine")
    assert (status, tags) == (1, ["pdserve/engine:1"])
    [line] = [line for line in capsys.readouterr().err.splitlines() if line.startswith("arm64:")]
    assert "docker does so for amd64" in line
    assert "qemu-user-static" in line


def test_podman_says_what_it_emulates(tmp_path: Path) -> None:
    host = {"arch": "arm64", "emulatedArchitectures": ["linux/amd64", "linux/ppc64le"]}
    podman = tmp_path / "podman"
    podman.write_text(f"#!/bin/sh\necho '{json.dumps({'host': host})}'\n")
    podman.chmod(0o755)
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    found = find_engine("podman", environment).architectures()
    assert found == ["arm64", "amd64", "ppc64le"]


def test_an_engine_that_says_nothing_is_named(tmp_path: Path) -> None:
    (tmp_path / "docker").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "docker").chmod(0o755)
    with pytest.raises(ImagesError, match="does not say which architecture"):
        find_engine("docker", {"PATH": f"{tmp_path}:/usr/bin:/bin"}).architectures()


def test_a_base_of_debian_packages_is_made_for_each_architecture() -> None:
    asked: list[bool] = []

    def foreign(make: bool) -> str:
        asked.append(make)
        return "pdserve/debian-base:trixie-arm64-1"

    assert base.elsewhere("python:3.12-slim", lambda _: "debian", foreign) == "python:3.12-slim"
    assert asked == []
    assert base.elsewhere("debian", lambda _: "debian", foreign) == foreign(True)
    names = {arch: base.debian_base("docker", arch)(False) for arch in ("", *MACHINES)}
    assert len(set(names.values())) == 3
    assert "-arm64-" in names["arm64"]


def test_an_unknown_architecture_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build.main(["--arch", "amd64,vax"])
    assert "vax: choose from amd64, arm64" in capsys.readouterr().err


@pytest.mark.parametrize("arch", MACHINES)
def test_wheels_are_asked_for_by_that_architecture(arch: str) -> None:
    flags = wheels.target(Python((3, 12), MACHINES[arch], "glibc", "2.36", index=False))
    assert f"manylinux_2_17_{MACHINES[arch]}" in flags


def test_every_architecture_may_install_what_has_compiled_parts() -> None:
    """Where a project publishes wheels for many machines, files of all of them are listed."""
    hashes = read_hashes((ROOT / "hack" / "constraints-hashed.txt").read_text())
    files = {name: len(listed) for (name, _), listed in hashes.items()}
    # Two architectures, two C libraries, Python 3.11 to 3.14: fewer would be a list of one machine.
    for name in ("numpy", "orjson", "uvloop", "httptools", "aiohttp", "pydantic-core"):
        assert files[name] >= 16, name


def test_the_dockerfile_names_no_architecture() -> None:
    text = (ROOT / "Dockerfile").read_text()
    assert not [word for word in (*MACHINES, *MACHINES.values(), "--platform") if word in text]
