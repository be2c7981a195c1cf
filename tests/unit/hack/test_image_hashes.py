"""Only files with a listed hash go into images."""

from __future__ import annotations

import hashlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from hack.images import install
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[3]
HASHES = install.read_hashes((ROOT / "hack" / "constraints-hashed.txt").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def closure(image: str) -> set[str]:
    """Distributions that an image gets on this machine, by what is installed here."""
    asked = install.wanted(PROJECT, image)
    found: set[str] = set()
    while asked:
        requirement = Requirement(asked.pop())
        name = install.normal_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        if not install.standalone(requirement.name):
            asked += importlib.metadata.requires(requirement.name) or []
    return found


@pytest.mark.parametrize("image", install.IMAGES)
def test_whatever_an_image_gets_has_hashes(image: str) -> None:
    assert closure(image) - {name for name, _ in HASHES} == set()
    assert all(re.fullmatch(r"sha256:[0-9a-f]{64}", h) for files in HASHES.values() for h in files)
    assert all(HASHES.values())


def test_versions_are_those_of_the_constraints() -> None:
    lines = (ROOT / "hack" / "constraints.txt").read_text().split()
    pinned = {install.normal_name(n): v for n, _, v in (line.partition("==") for line in lines)}
    assert {(name, version) for name, version in HASHES if pinned[name] != version} == set()
    assert ("pip", pinned["pip"]) in HASHES, "it is run before it can check itself"


def wheel(folder: Path, content: str) -> Path:
    """A wheel of a package `tiny`, version 1."""
    path = folder / "tiny-1-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", content)
        archive.writestr(
            "tiny-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n"
        )
        archive.writestr("tiny-1.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\n"
                         "Tag: py3-none-any\n")  # fmt: skip
        archive.writestr("tiny-1.dist-info/RECORD", "")
    return path


def sha256(path: Path) -> str:
    return f"sha256:{hashlib.sha256(path.read_bytes()).hexdigest()}"


@pytest.fixture
def build(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A build folder whose constraints list a wheel of `tiny`, offered by a wheelhouse."""
    house = tmp_path / "wheelhouse"
    house.mkdir()
    made = wheel(house, "x = 1\n")
    (tmp_path / "constraints.txt").write_text("tiny==1\n")
    (tmp_path / "constraints-hashed.txt").write_text(f"tiny==1 \\\n    --hash={sha256(made)}\n")
    monkeypatch.setattr(install, "BUILD", tmp_path)
    target = ["--no-index", "--find-links", str(house), "--target", str(tmp_path / "installed")]
    pip = [sys.executable, "-m", "pip", "install", *target]
    monkeypatch.setattr(install, "pip_install", lambda _python: pip)
    return tmp_path


def has_pip() -> bool:
    return subprocess.run([sys.executable, "-m", "pip", "--version"], check=False,
                          capture_output=True).returncode == 0  # fmt: skip


@pytest.mark.skipif(not has_pip(), reason="this environment has no pip")
def test_the_listed_file_is_installed_and_another_of_that_name_is_not(build: Path) -> None:
    install.install_locked(["tiny"])
    assert (build / "installed" / "tiny.py").read_text() == "x = 1\n"
    wheel(build / "wheelhouse", "x = 2\n")
    with pytest.raises(SystemExit, match="could not be installed"):
        install.install_locked(["tiny"])


@pytest.mark.skipif(not has_pip(), reason="this environment has no pip")
def test_a_package_without_hashes_is_not_installed(build: Path) -> None:
    (build / "constraints-hashed.txt").write_text("")
    with pytest.raises(SystemExit, match="tiny==1 is not in"):
        install.install_locked(["tiny"])


def test_a_pip_that_is_not_listed_is_not_run(tmp_path: Path) -> None:
    good, bad = tmp_path / "pip-1-py3-none-any.whl", tmp_path / "pip-2-py3-none-any.whl"
    good.write_bytes(b"good")
    bad.write_bytes(b"bad")
    hashes = {("pip", "1"): (sha256(good),)}
    assert install.listed_pip([good, bad], hashes) == good
    with pytest.raises(SystemExit, match="no wheel of pip"):
        install.listed_pip([bad], hashes)
