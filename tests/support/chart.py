"""The chart, rendered by the real Helm."""

from __future__ import annotations

import functools
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml

from localcluster import binaries

CHART = Path(__file__).resolve().parents[2] / "charts" / "pdserve"
OLDEST = (3, 18)
"""Version of Helm whose messages the tests know."""
RELEASE = "pdserve"
NAMESPACE = "pdserve-system"
Json = dict[str, Any]


@functools.cache
def program() -> str:
    """Path of Helm, which may be one on PATH; fails with what would be right if it is too old."""
    path = str(binaries.helm())
    said = _run(path, "version", "--short").stdout
    found = re.match(r"v(\d+)\.(\d+)", said)
    assert found is not None, f"{path}: no version of Helm: {said!r}"
    assert tuple(map(int, found.groups())) >= OLDEST, (
        f"{path} is Helm {said.strip()}: these tests need 3.18 or later; "
        f"name one with ${binaries.ENV_HELM}"
    )
    return path


def helm(
    *args: str | Path, stdin: str | None = None, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    """What Helm answered, errors included; without `kubeconfig` it knows no cluster."""
    return _run(program(), *map(str, args), stdin=stdin, kubeconfig=kubeconfig)


def _run(
    *command: str, stdin: str | None = None, kubeconfig: Path | None = None
) -> subprocess.CompletedProcess[str]:
    # A user's HELM_DEBUG, HELM_KUBECONTEXT and the like are about other clusters.
    mine = {name: value for name, value in os.environ.items() if not name.startswith("HELM_")}
    return subprocess.run(
        command,
        input=stdin,
        env={**mine, "KUBECONFIG": str(kubeconfig or os.devnull)},
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
