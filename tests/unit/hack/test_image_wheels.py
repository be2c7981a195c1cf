"""Where builds take wheels from, and for which Python they are downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hack.images import wheels
from hack.images.base import Python
from hack.images.containers import ImagesError

SLIM = Python((3, 12), "x86_64", "glibc", "2.41", index=True)
OFFLINE = Python((3, 12), "aarch64", "glibc", "2.36", index=False)


@pytest.mark.parametrize(
    ("asked", "python", "files", "want"),
    [
        ("auto", SLIM, [], "index"),
        ("auto", OFFLINE, [], "wheelhouse"),
        ("auto", SLIM, ["kopf-1-py3-none-any.whl"], "wheelhouse"),
        ("auto", SLIM, ["kopf-1-py3-none-any.whl", wheels.STAMP], "index"),
        ("index", OFFLINE, ["kopf-1-py3-none-any.whl"], "index"),
        ("wheelhouse", SLIM, [], "wheelhouse"),
    ],
    ids=["index", "no index", "wheels by hand", "wheels of an earlier run", "asked", "asked too"],
)
def test_source(tmp_path: Path, asked: str, python: Python, files: list[str], want: str) -> None:
    for name in files:
        (tmp_path / name).touch()
    assert wheels.source(asked, python, tmp_path) == want


def test_wheels_are_asked_for_by_every_tag_the_base_can_run() -> None:
    flags = wheels.target(OFFLINE)
    assert flags[:4] == ["--python-version", "3.12", "--implementation", "cp"]
    tags = flags[5::2]
    assert tags[0] == "manylinux_2_36_aarch64"
    assert {"manylinux_2_28_aarch64", "manylinux_2_17_aarch64", "manylinux2014_aarch64"} <= {*tags}
    assert "manylinux_2_37_aarch64" not in tags


def test_musl_has_tags_of_its_own() -> None:
    flags = wheels.target(Python((3, 13), "x86_64", "musl", "1.2", index=False))
    assert flags[5::2] == ["musllinux_1_2_x86_64", "musllinux_1_1_x86_64"]


def test_a_c_library_without_wheels_is_named() -> None:
    with pytest.raises(ImagesError, match="no wheels are published for the C library 'unknown'"):
        wheels.target(Python((3, 13), "x86_64", "", "", index=False))


class Checkout:
    """A checkout's requirements, and a downloader that counts."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.house = root / "wheelhouse"
        self.house.mkdir()
        (root / "hack").mkdir()
        (root / "hack" / "constraints.txt").write_text("kopf==1\n")
        self.require("kopf>=1", "tokenizers>=0.21")
        self.asked: list[list[str]] = []
        self.fails = False

    def require(self, *engine: str) -> None:
        (self.root / "pyproject.toml").write_text(
            "[project]\ndependencies = ['pyyaml']\n"
            f"optional-dependencies = {{operator = [], gateway = [], engine = {[*engine]}}}\n"
        )

    def download(self, arguments: Sequence[str], to: Path) -> None:
        if self.fails:
            raise ImagesError("no index")
        self.asked.append(list(arguments))
        to.mkdir(exist_ok=True)
        (to / f"w{len(self.asked)}-1-py3-none-any.whl").touch()

    def fill(self, python: Python = OFFLINE) -> list[str]:
        wheels.fill(python, self.root, self.house, self.download)
        return sorted(p.name[:2] for p in self.house.glob("*.whl"))


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path)


def test_it_is_filled_once_for_the_same_requirements(checkout: Checkout) -> None:
    assert checkout.fill() == ["w1", "w2"]
    assert checkout.fill() == ["w1", "w2"]
    assert checkout.asked[0][-3:] == ["kopf>=1", "pip", "pyyaml"]
    # What it requires would be a client of a model hub.
    assert checkout.asked[1][-2:] == ["--no-deps", "tokenizers>=0.21"]
    assert not (checkout.house / ".new").exists()


def test_it_is_filled_anew_for_other_requirements_pins_or_pythons(checkout: Checkout) -> None:
    checkout.fill()
    checkout.require("kopf>=2")
    assert checkout.fill() == ["w3"]
    (checkout.root / "hack" / "constraints.txt").write_text("kopf==2\n")
    assert checkout.fill() == ["w4"]
    assert checkout.fill(SLIM) == ["w5"]


def test_what_was_there_stays_when_the_index_is_away(checkout: Checkout) -> None:
    checkout.fill()
    checkout.require("kopf>=2")
    checkout.fails = True
    with pytest.raises(ImagesError, match="no index"):
        checkout.fill()
    assert len(list(checkout.house.glob("*.whl"))) == 2
    checkout.fails = False
    assert checkout.fill() == ["w3"]


def test_wheels_put_there_by_hand_are_left_alone(checkout: Checkout) -> None:
    (checkout.house / "w0-1-py3-none-any.whl").touch()
    assert checkout.fill() == ["w0"]
    assert checkout.asked == []
