"""Real control planes for tests: how the fixtures in conftest make them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pdserve.local.controlplane import Components, ControlPlane, ControlPlaneSettings


@contextmanager
def running_control_plane(
    state_dir: Path,
    components: Components = Components.API,
    settings: ControlPlaneSettings | None = None,
) -> Iterator[ControlPlane]:
    """A started control plane, stopped at the end whatever happens."""
    plane = ControlPlane(state_dir, components=components, settings=settings)
    plane.start(print)
    try:
        yield plane
    finally:
        plane.stop()
