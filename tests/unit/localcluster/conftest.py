"""A Docker engine and kind that are not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from tests.unit.localcluster.fake_engine import FakeEngine

from localcluster import cli as command
from localcluster import kind


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeEngine:
    """Programs on PATH that play Docker and kind; nothing in the environment speaks of others."""
    fake = FakeEngine(tmp_path / "path")
    fake.install()
    for name in ("KIND_NODE_IMAGE", "DOCKER_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", f"{fake.folder}:{os.defpath}")
    monkeypatch.setenv("PDSERVE_KIND", str(fake.folder / "kind"))
    monkeypatch.setattr(kind, "connect", fake.connect)
    monkeypatch.setattr(command, "connect", fake.connect)
    fake.set(images={"pdserve/engine:1": "sha256:a"})
    return fake
