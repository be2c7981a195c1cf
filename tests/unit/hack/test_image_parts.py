"""What of the source each image and the package hold: no engine in the operator, no demo in any."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import grimp
import pytest
from hack.images import install
from setuptools import find_packages

SOURCE = Path(__file__).resolve().parents[3] / "operator"
ENTRIES = {
    "operator": ("pdserve.controllers.__main__",),
    "gateway": (
        "pdserve.gateway.__main__",
        "pdserve.cli.load",
        "pdserve.engineproxy.__main__",
        "pdserve.downloader.__main__",
    ),
    "engine": ("pdserve.refengine.__main__",),
}
NOT_IN = {
    "operator": {"refengine", "engineproxy", "gateway", "forwarding", "dst", "cli"},
    "gateway": {"refengine", "controllers", "dst", "cli.main", "cli.kubectl"},
    "engine": {"controllers", "engineproxy", "gateway", "dst", "cli"},
}
GRAPH = grimp.build_graph("pdserve", cache_dir=None)
FACES = {"operator": {"pod", "control", "metrics"}, "gateway": {"flow"}, "engine": set[str]()}
"""What each process loads of every engine type, by name."""
PROJECT = tomllib.loads((SOURCE.parent / "pyproject.toml").read_text())


def entries(image: str) -> tuple[str, ...]:
    """Where an image's process begins, and what it loads by name."""
    faces = (m for m in GRAPH.modules if m.startswith("pdserve.engines.") and m.count(".") == 3)
    return (*ENTRIES[image], *(m for m in faces if m.rpartition(".")[2] in FACES[image]))


def imported(*entries: str) -> set[str]:
    """Modules of pdserve that `entries` import, also inside functions."""
    found = set(entries)
    for entry in entries:
        found |= GRAPH.find_upstream_modules(entry)
    return found


@pytest.fixture(scope="module", params=install.IMAGES)
def image(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def app(image: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of pdserve, cut down to what the image holds."""
    app = tmp_path_factory.mktemp(image)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "pdserve", app / "pdserve", ignore=ignored)
    install.keep(app / "pdserve", install.PARTS[image])
    return app


def modules(app: Path) -> set[str]:
    paths = (p.relative_to(app).with_suffix("") for p in app.rglob("*.py"))
    return {".".join(p.parts).removesuffix(".__init__") for p in paths}


def test_an_image_holds_all_that_its_process_imports(image: str, app: Path) -> None:
    assert imported(*entries(image)) <= modules(app)


def test_each_part_of_an_image_is_imported_by_its_process(image: str) -> None:
    used = imported(*entries(image))
    for part in install.PARTS[image]:
        assert any(f"{name}.".startswith(f"pdserve.{part}.") for name in used), part


def test_an_image_holds_no_other_process_and_no_simulation(image: str, app: Path) -> None:
    held = {name.removeprefix("pdserve.") for name in modules(app)}
    assert not held & NOT_IN[image]
    assert list(app.iterdir()) == [app / "pdserve"]
    weights = list(app.rglob("*.safetensors"))
    assert bool(weights) == (image == "engine")


def test_an_images_process_starts_from_what_the_image_holds(image: str, app: Path) -> None:
    """Its `--help`, which imports the options only; all modules are compared above."""
    entry = ENTRIES[image][0].removesuffix(".__main__")
    done = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path.insert(0, {str(app)!r}); "
         f"import pdserve, runpy; print(pdserve.__file__); sys.argv = ['x', '--help']; "
         f"runpy.run_module({entry!r}, run_name='__main__', alter_sys=True)"],
        capture_output=True, text=True, check=False, cwd=app,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"{app}/pdserve/__init__.py")
    assert "usage:" in done.stdout


LOADED = "import sys\nimport {module}\nprint(*sys.modules)"


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("pdserve.controllers", ("refengine", "gateway", "cli", "dst")),
        ("pdserve.controllers.app", ("refengine", "gateway", "cli", "dst")),
        ("pdserve.controllers.kopf_app", ("refengine", "gateway", "cli", "dst")),
        ("pdserve.gateway.app", ("refengine", "controllers", "cli", "dst")),
        ("pdserve.gateway.process", ("refengine", "controllers", "cli", "dst")),
        ("pdserve.refengine.server", ("controllers", "engineproxy", "gateway", "cli", "dst")),
        ("pdserve.engineproxy.server", ("controllers", "gateway", "refengine", "cli", "dst")),
    ],
)
def test_a_process_loads_no_other_process(module: str, absent: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module=module)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = done.stdout.split()
    assert module in loaded
    unwanted = tuple(f"pdserve.{name}" for name in absent)
    assert [m for m in loaded if m.startswith((*unwanted, "localcluster"))] == []


def test_the_simulation_loads_no_client_of_a_real_cluster() -> None:
    """Each schedule is a fork: what it does not need costs it pages to copy."""
    done = subprocess.run(
        [sys.executable, "-c", LOADED.format(module="pdserve.dst.runner")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert not {"kopf", "kubernetes", "requests"} & set(done.stdout.split())


def test_the_package_holds_both_source_packages_and_nothing_beside_them() -> None:
    tool = PROJECT["tool"]["setuptools"]["packages"]["find"]
    found = find_packages(str(SOURCE), include=tool["include"])
    assert {name.split(".")[0] for name in found} == {"pdserve", "localcluster"}
    assert {p.parent.name for p in SOURCE.glob("*/__init__.py")} == {"pdserve", "localcluster"}
    # Commands of localcluster reach `pdserve` by these alone.
    plugins = PROJECT["project"]["entry-points"]["pdserve.commands"]
    assert {value.partition(":")[0].split(".")[0] for value in plugins.values()} == {"localcluster"}
