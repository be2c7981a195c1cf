"""C extensions in the gateway's image: only those that run there, and only beside their modules."""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
from hack import compile as compile_tool
from hack.images import install
from hack.images.base import Python
from hack.images.extensions import differs

HERE = Python((3, 11), "x86_64", "glibc", "2.36", index=False)
SUFFIX = str(sysconfig.get_config_var("EXT_SUFFIX"))


@pytest.mark.parametrize("base", [HERE, replace(HERE, libc_version="2.41")])
def test_a_base_like_this_machine_takes_what_is_compiled_here(base: Python) -> None:
    assert differs(base, HERE) == ""


@pytest.mark.parametrize(
    ("base", "says"),
    [
        (replace(HERE, version=(3, 12)), "PYTHON=python3.12"),
        (replace(HERE, machine="aarch64"), "build on a machine of that kind"),
        (replace(HERE, libc="musl", libc_version="1.2"), "with musl"),
        (replace(HERE, libc_version="2.31"), "newer than 2.31"),
    ],
)
def test_another_base_has_none_and_says_what_to_do(base: Python, says: str) -> None:
    assert says in differs(base, HERE)


def laid_out(folder: Path) -> tuple[Path, Path]:
    """A package of two modules, and extensions for one of them and for others."""
    app, compiled = folder / "app", folder / "compiled"
    (app / "pdserve" / "http1").mkdir(parents=True)
    for module in ("client", "pool"):
        (app / "pdserve" / "http1" / f"{module}.py").touch()
    for name in (
        f"shared__mypyc{SUFFIX}",
        f"pdserve/http1/client{SUFFIX}",
        f"pdserve/http1/gone{SUFFIX}",
        "pdserve/http1/client.cpython-399-riscv64-linux-gnu.so",
    ):
        (compiled / name).parent.mkdir(parents=True, exist_ok=True)
        (compiled / name).touch()
    (compiled / install.SOURCES).write_text(install.sources_digest(app))
    return compiled, app


def test_extensions_lie_beside_their_modules(tmp_path: Path) -> None:
    compiled, app = laid_out(tmp_path)
    install.add_extensions(compiled, app)
    found = sorted(p.relative_to(app).as_posix() for p in app.rglob("*.so"))
    assert found == [f"pdserve/http1/client{SUFFIX}", f"shared__mypyc{SUFFIX}"]
    install.add_extensions(tmp_path / "absent", app)


@pytest.mark.parametrize("change", ["edited", "added", "removed", "not said"])
def test_extensions_of_other_sources_stay_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: str
) -> None:
    """`docker build` by hand finds what the last `make images` left; Python would prefer it."""
    compiled, app = laid_out(tmp_path)
    module = app / "pdserve" / "http1" / ("new.py" if change == "added" else "pool.py")
    if change == "removed":
        module.unlink()
    elif change == "not said":
        (compiled / install.SOURCES).unlink()
    else:
        module.write_text("print()")
    install.add_extensions(compiled, app)
    assert not list(app.rglob("*.so"))
    assert "other sources" in capsys.readouterr().out


def test_what_is_compiled_is_what_the_digest_covers() -> None:
    assert set(compile_tool.COMPILED) == set(install.WITH_EXTENSIONS)
