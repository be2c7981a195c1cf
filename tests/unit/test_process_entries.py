"""How pdserve's processes start: able to end before anything heavy is imported."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ("asyncio", "kopf", "numpy", "orjson", "uvloop")
LOOK = """
import sys
import {module}
print([name for name in {heavy} if name in sys.modules])
"""


@pytest.mark.parametrize(
    "package", ["controllers", "downloader", "engineproxy", "gateway", "refengine"]
)
def test_importing_an_entry_imports_nothing_that_takes_long(package: str) -> None:
    """As process 1 it would not hear SIGTERM until its handler is set: first thing in `main`."""
    allowed = {"asyncio"} if package == "controllers" else set()
    heavy = tuple(name for name in HEAVY if name not in allowed)
    code = LOOK.format(module=f"pdserve.{package}.__main__", heavy=heavy)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
