"""The engine of docs/engines/own.md with the adapter of that page, installed while a test runs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import engine_types

ROOT = Path(__file__).resolve().parents[3]
PAGE = ROOT / "docs" / "engines" / "own.md"


@pytest.fixture
def own_type(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Its name."""
    site = tmp_path / "site"
    site.mkdir()
    engine_types.install(monkeypatch, site)
    (code,) = re.findall(r"```python\n(# own_engine/flow.*?)```", PAGE.read_text(), re.DOTALL)
    modules = dict(
        re.findall(r"# own_engine/(\w+)\.py\n(.*?)(?=# own_engine/|\Z)", code, re.DOTALL)
    )
    assert set(modules) == {"flow", "pod", "control", "metrics"}
    engine_types.package(site, "own_engine", **modules)
    engine_types.announce(site, {"Own": "own_engine"})
    yield "Own"
    engine_types.uninstall(site)
