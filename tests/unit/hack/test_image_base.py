"""Which base images stand on: the order in which bases are tried, and what is said when none is."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hack.images import base
from hack.images.containers import Image, ImagesError

ROOT = Path(__file__).resolve().parents[3]
DEFAULT = "python:3.12-slim"
DEBIAN = "pdserve/debian-base:trixie-0123"


@dataclasses.dataclass
class FakeEngine:
    """A container engine that has some images and can pull some others."""

    has: set[str]
    registry: set[str]
    says: str = "{}"
    pulled: list[str] = dataclasses.field(default_factory=list)

    def find(self, name: str) -> Image | None:
        return Image(name, "0", 0) if name in self.has else None

    def pull(self, name: str) -> None:
        if name not in self.registry:
            raise ImagesError(f"{name} cannot be pulled: no such host")
        self.pulled.append(name)
        self.has.add(name)

    def run_python(self, image: str, script: str, *arguments: str) -> str:
        compile(script, "probe", "exec")
        return self.says


@pytest.mark.parametrize(
    ("has", "registry", "asked", "want", "pulled", "made"),
    [
        ("", DEFAULT, None, DEFAULT, [DEFAULT], False),
        (DEFAULT, "", None, DEFAULT, [], False),
        (f"{DEFAULT} {DEBIAN}", "", None, DEFAULT, [], False),
        ("", "", None, DEBIAN, [], True),
        # Once made it is taken without asking a registry that did not answer before.
        (DEBIAN, DEFAULT, None, DEBIAN, [], False),
        ("mine:1", "", "mine:1", "mine:1", [], False),
        (DEBIAN, "mine:1", "mine:1", "mine:1", ["mine:1"], False),
    ],
    ids=["pulled", "there", "there, and Debian's", "neither", "made before", "asked", "asked, far"],
)
def test_the_first_that_works_is_taken(
    has: str, registry: str, asked: str | None, want: str, pulled: list[str], made: bool
) -> None:
    engine = FakeEngine(set(has.split()), set(registry.split()))
    calls: list[bool] = []

    def debian(make: bool) -> str:
        calls.append(make)
        return DEBIAN

    assert base.choose(engine, asked, DEFAULT, debian) == want
    assert engine.pulled == pulled
    assert (True in calls) is made


def test_a_base_that_was_asked_for_is_not_replaced_by_another() -> None:
    engine = FakeEngine(set(), {DEFAULT})
    with pytest.raises(ImagesError, match="mine:1 cannot be pulled: no such host"):
        base.choose(engine, "mine:1", DEFAULT, lambda make: DEBIAN)


def test_people_hear_why_a_base_is_made(capsys: pytest.CaptureFixture[str]) -> None:
    base.choose(FakeEngine(set(), set()), None, DEFAULT, lambda make: DEBIAN)
    said = capsys.readouterr().err
    assert "python:3.12-slim cannot be pulled: no such host" in said
    assert "from Debian packages" in said


def probe(**changes: object) -> str:
    found = {
        "python": [3, 12], "machine": "x86_64", "libc": "glibc", "libc_version": "2.41",
        "index": True,
    }  # fmt: skip
    return json.dumps(found | changes)


def test_the_base_is_asked_about_its_python() -> None:
    found = base.inspect(FakeEngine(set(), set(), probe()), DEFAULT)
    assert found == base.Python((3, 12), "x86_64", "glibc", "2.41", True)


def test_a_base_with_an_old_python_is_refused_with_a_way_out() -> None:
    engine = FakeEngine(set(), set(), probe(python=[3, 9]))
    with pytest.raises(
        ImagesError, match=r"old:1 has Python 3\.9.* 3\.11 or newer: set BASE_IMAGE"
    ):
        base.inspect(engine, "old:1")


def test_the_probe_runs_on_this_python(capsys: pytest.CaptureFixture[str]) -> None:
    import sys

    argv, sys.argv = sys.argv, ["-c", "http://127.0.0.1:9/"]
    try:
        exec(compile(base.PROBE, "probe", "exec"), {})
    finally:
        sys.argv = argv
    found = json.loads(capsys.readouterr().out)
    assert tuple(found["python"]) == sys.version_info[:2]
    assert found["index"] is False


def test_the_default_is_the_dockerfiles() -> None:
    assert base.default_base(ROOT / "Dockerfile") == DEFAULT


def test_the_name_of_the_debian_base_changes_with_its_suite() -> None:
    name = base.debian_base("docker")(False)
    assert name.startswith("pdserve/debian-base:")
    assert name == base.debian_base("podman")(False)
