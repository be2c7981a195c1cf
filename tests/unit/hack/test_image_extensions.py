"""C extensions in the gateway's image: only those that run there, and only beside their modules."""

from __future__ import annotations

import sysconfig
from dataclasses import replace
from pathlib import Path

import pytest
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


def test_extensions_lie_beside_their_modules(tmp_path: Path) -> None:
    app, compiled = tmp_path / "app", tmp_path / "compiled"
    (app / "pdserve" / "http1").mkdir(parents=True)
    (app / "pdserve" / "http1" / "client.py").touch()
    for name in (
        f"shared__mypyc{SUFFIX}",
        f"pdserve/http1/client{SUFFIX}",
        f"pdserve/http1/gone{SUFFIX}",
        "pdserve/http1/client.cpython-399-riscv64-linux-gnu.so",
    ):
        (compiled / name).parent.mkdir(parents=True, exist_ok=True)
        (compiled / name).touch()
    install.add_extensions(compiled, app)
    found = sorted(p.relative_to(app).as_posix() for p in app.rglob("*.so"))
    assert found == [f"pdserve/http1/client{SUFFIX}", f"shared__mypyc{SUFFIX}"]
    install.add_extensions(tmp_path / "absent", app)
