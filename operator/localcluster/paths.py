"""Where local clusters keep things: the cache of binaries and the state of running clusters."""

from __future__ import annotations

import os
from pathlib import Path

DEFAULT_NAME = "pdserve"


def cache_dir() -> Path:
    """Binaries survive here between clusters: $PDSERVE_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("PDSERVE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "pdserve"


def default_state_dir(name: str) -> Path:
    """State of the cluster `name`: $PDSERVE_STATE/name, else the user's state folder."""
    if chosen := os.environ.get("PDSERVE_STATE"):
        return Path(chosen).expanduser() / name
    base = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(base).expanduser() / "pdserve" / name


class ClusterFiles:
    """A cluster's name and the directory that holds everything of it, running or not."""

    def __init__(self, name: str = DEFAULT_NAME, state_dir: Path | None = None) -> None:
        self.name = name
        self.state_dir = (state_dir or default_state_dir(name)).absolute()

    @property
    def kubeconfig(self) -> Path:
        """Kubeconfig of the administrator."""
        return self.state_dir / "kubeconfig"


def checkout() -> Path | None:
    """Root of the source checkout this package runs from, or None when installed without it."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "hack" / "programs" / "go.mod").is_file() else None
