"""Engine types of a test's own, registered as any package registers them: by an entry point."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from pdserve.engines import registry


def announce(directory: Path, types: Mapping[str, str], name: str = "acme") -> Path:
    """A distribution in `directory` that announces packages by type; returns `directory`."""
    info = directory / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    lines = [f"{type_name} = {package}\n" for type_name, package in types.items()]
    (info / "entry_points.txt").write_text(f"[{registry.GROUP}]\n" + "".join(lines))
    return directory


def package(directory: Path, name: str, **modules: str) -> None:
    """A package with these modules and their text."""
    (directory / name).mkdir(parents=True)
    for module, text in {"__init__": "", **modules}.items():
        (directory / name / f"{module}.py").write_text(text)


def install(monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
    """Put a directory on the search path until the test ends; call `uninstall` in its teardown."""
    monkeypatch.syspath_prepend(str(directory))
    importlib.invalidate_caches()
    registry.forget()


def uninstall(directory: Path) -> None:
    """Forget what was found and loaded there."""
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", None) or "").startswith(f"{directory}/"):
            del sys.modules[name]
    registry.forget()
