"""The chart, rendered by the real Helm."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path
from typing import Any

import yaml

from pdserve.local import binaries

CHART = Path(__file__).resolve().parents[2] / "charts" / "pdserve"
RELEASE = "pdserve"
NAMESPACE = "pdserve-system"
Json = dict[str, Any]


@functools.cache
def program() -> str:
    """Path of Helm."""
    return str(binaries.helm())


def helm(
    *args: str | Path, stdin: str | None = None, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What Helm answered, errors included; without `kubeconfig` it knows no cluster."""
    return subprocess.run(
        [program(), *map(str, args)],
        input=stdin,
        env={**os.environ, "KUBECONFIG": str(kubeconfig or os.devnull)},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


def template(
    values: Json | None = None, *, chart: Path = CHART, release: str = RELEASE, **nested: Any
) -> subprocess.CompletedProcess[str]:
    """`helm template` with these values."""
    return _template(yaml.safe_dump((values or {}) | nested), chart, release)


@functools.cache
def _template(values: str, chart: Path, release: str) -> subprocess.CompletedProcess[str]:
    """The chart does not change while tests run, and many ask for its defaults."""
    return helm(
        "template", release, chart, "--namespace", NAMESPACE, "--values", "-",
        # A Helm built from source takes the cluster for Kubernetes 1.20 unless told.
        "--kube-version", binaries.KUBERNETES_VERSION,
        stdin=values,
    )  # fmt: skip


def render(values: Json | None = None, *, chart: Path = CHART, **nested: Any) -> list[Json]:
    """The objects of the chart with these values: `render(operator={"replicas": 3})`."""
    done = template(values, chart=chart, **nested)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def only(documents: list[Json], kind: str, name: str | None = None) -> Json:
    """The one object of a kind (and name)."""
    found = [
        d for d in documents if d["kind"] == kind and name in (None, d["metadata"].get("name"))
    ]
    assert len(found) == 1, f"{kind} {name or ''}: {len(found)} of them"
    return found[0]


def nested(path: str, value: Any) -> Json:
    """`{"a": {"b": value}}` for the path `a.b`."""
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def leaves(values: Json, closed: frozenset[str] = frozenset(), prefix: str = "") -> dict[str, Any]:
    """Dotted path -> value of everything that is not an object, or is in `closed`, or is empty."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict) and value and path not in closed:
            found |= leaves(value, closed, f"{path}.")
        else:
            found[path] = value
    return found
