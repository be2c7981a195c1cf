"""The compiled request path: the modules it names are there, and it behaves as the sources do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hack import check_compiled
from hack import compile as compiling
from hack.images import install

ROOT = Path(__file__).resolve().parents[3]
SAME = ("tests/unit/gateway/test_killed_engines.py", "tests/unit/http1", "tests/unit/forwarding")
"""Tests of the request path that compiled code has to pass too."""


def test_what_stays_interpreted_is_there() -> None:
    for name in compiling.INTERPRETED:
        assert (compiling.SOURCES / "pdserve" / name).is_file()


def test_everything_that_is_compiled_is_in_the_gateways_image() -> None:
    parts = set(install.PARTS["gateway"])
    assert parts.issuperset(compiling.COMPILED)


def test_without_a_compiler_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    assert "install gcc" in compiling.cannot()


@pytest.mark.skipif(bool(compiling.cannot()), reason="no C compiler, or no Python.h")
def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    kept = tmp_path / "thesis.txt"
    kept.touch()
    program = [sys.executable, str(ROOT / "hack" / "compile.py")]
    for folder in (tmp_path, kept):
        done = subprocess.run([*program, folder], capture_output=True, text=True, check=False)
        assert (done.returncode, kept.exists()) == (1, True)
    assert not compiling.foreign(tmp_path / "absent")
    compiling.lay_out(tmp_path / "made")
    assert not compiling.foreign(tmp_path / "made")


@pytest.mark.timeout(900)  # a minute of compiling on an idle core, and tests
def test_compiled_code_passes_tests_of_its_sources(tmp_path: Path) -> None:
    """Some of them; `make test-compiled` runs all."""
    made = tmp_path / "compiled"
    done = subprocess.run(
        [sys.executable, ROOT / "hack" / "compile.py", made, "--optimize", "0"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    proof = tmp_path / "test_proof.py"
    proof.write_text(
        "from pdserve.http1 import client\n\n\n"
        "def test_it_is_compiled() -> None:\n    assert client.__file__.endswith('.so')\n"
    )
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not interpreted",
            "-o", f"pythonpath={made} .", *SAME, proof,
        ],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-6000:]


LOCAL = "def f() -> None:\n    def g() -> None: ...\n"
TWO = "def f() -> None:\n    try: ...\n    except A as e: ...\n    except B as e: ...\n"
WAITS = "async def f() -> None:\n    try: ...\n    finally:\n        await g()\n"
ENTERS = "async def f() -> None:\n    async with g():\n        pass\n"
ABSENT = """
if TYPE_CHECKING:
    from pdserve.gateway.tracing import Tracer

class Parts(NamedTuple):
    tracer: Tracer | None
"""
FINE = """
async def f() -> None:
    try:
        await g()
    except A as e: ...
    except B as other: ...
    finally: ...
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (LOCAL, "local function"),
        (TWO, "another name"),
        (WAITS, "await while"),
        (ENTERS, "async with"),
        (ABSENT, "is not there"),
    ],
)
def test_what_mypyc_takes_wrongly_is_refused(text: str, says: str) -> None:
    [line] = check_compiled.problems("module.py", text)
    assert says in line


def test_what_mypyc_takes_rightly_is_not() -> None:
    assert list(check_compiled.problems("module.py", FINE)) == []
