"""Which worker of a run gets which tests: see tests/support/lanes.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.support.lanes import OWN_CLUSTER, next_scope, scope_of

ROOT = Path(__file__).parents[2]


def test_what_shares_a_cluster_stays_together() -> None:
    files = sorted((ROOT / "tests" / "cluster").glob("test_*.py"))
    scopes = {file.name: scope_of(f"tests/cluster/{file.name}::test[a::b]") for file in files}
    assert {name for name, scope in scopes.items() if scope.endswith(name)} == set(OWN_CLUSTER)
    shared = {scope for name, scope in scopes.items() if name not in OWN_CLUSTER}
    assert shared == {"nodes alone", "nodes and operator"}
    assert scope_of("tests/unit/kube/test_a.py::test_b") == "tests/unit/kube/test_a.py"


@pytest.mark.parametrize(
    ("waiting", "computing", "chosen"),
    [
        (["nodes alone", "tests/api/a.py", "tests/unit/a.py", "tests/unit/b.py"], True, 2),
        (["nodes alone", "tests/api/a.py", "tests/unit/a.py", "tests/unit/b.py"], False, 0),
        (["tests/unit/a.py", "tests/unit/b.py"], False, 0),
        (["tests/api/a.py", "tests/api/b.py"], True, 0),
        (["tests/unit/a.py", "tests/api/b.py"], False, 1),
    ],
)
def test_a_worker_takes_its_own_kind_first(
    waiting: list[str], computing: bool, chosen: int
) -> None:
    assert next_scope(waiting, computing=computing) == waiting[chosen]


def test_of_several_workers_the_first_computes_and_every_test_runs_once(tmp_path: Path) -> None:
    """Of three workers; the tests of both kinds wait for each other, so neither may come last."""
    (tmp_path / "pytest.ini").write_text("[pytest]\naddopts = -p tests.support.lanes\n")
    for folder, other in (("api", "unit"), ("unit", "api")):
        (tmp_path / "tests" / folder).mkdir(parents=True)
        for number in range(4):
            (tmp_path / "tests" / folder / f"test_{folder}{number}.py").write_text(
                "import pathlib, time\n"
                "def test_begins():\n"
                f"    pathlib.Path({folder!r}).touch()\n"
                "    end = time.monotonic() + 60\n"
                f"    while not pathlib.Path({other!r}).exists():\n"
                "        assert time.monotonic() < end\n"
                "        time.sleep(0.01)\n"
            )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-v", "-n", "3", "--dist", "loadscope",
         "--no-loadscope-reorder", "tests"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
        env={k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    ran = re.findall(r"^\[(gw\d)\] .*PASSED (\S+)", done.stdout, re.MULTILINE)
    assert len(ran) == len({test for _, test in ran}) == 8
    first = {folder: ran_by(ran, folder) for folder in ("unit", "api")}
    assert first["unit"] == "gw0" and first["api"] != "gw0"


def ran_by(ran: list[tuple[str, str]], folder: str) -> str:
    """The worker of the folder's first file, which nothing else was begun before."""
    return next(worker for worker, test in ran if test.startswith(f"tests/{folder}/test_{folder}0"))
