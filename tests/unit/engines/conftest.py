"""A directory whose packages and entry points count while a test runs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support import engine_types


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = tmp_path / "site"
    directory.mkdir()
    engine_types.install(monkeypatch, directory)
    yield directory
    engine_types.uninstall(directory)
