"""Which sort of cluster has a name: one of process nodes, one of kind, or none."""

from __future__ import annotations

from pathlib import Path

from localcluster.cluster import LocalCluster
from localcluster.errors import LocalError
from localcluster.kind import KindCluster
from localcluster.plan import PLAN


def find(name: str, state_dir: Path | None = None) -> LocalCluster | KindCluster | None:
    """The cluster that `up` made under this name, running or not; None when there is none."""
    kind = KindCluster(name, state_dir)
    if kind.exists:
        return kind
    process = LocalCluster(name, state_dir)
    return process if (process.state_dir / PLAN).is_file() else None


def refuse_other(name: str, state_dir: Path | None, wanted: type) -> None:
    """Check that `name` is a cluster of the sort `wanted`, or of none.

    Raises:
        LocalError: it is a cluster of another sort.
    """
    found = find(name, state_dir)
    if found is not None and not isinstance(found, wanted):
        sort = "kind" if isinstance(found, KindCluster) else "process"
        raise LocalError(
            f"cluster {name!r} has {sort} nodes; end it first (down), or choose another --name"
        )
