"""Fixtures shared by all layers of tests. Only what needs a real control plane is here.

BLAS gets one thread before anything imports numpy, as `pdserve.refengine.__main__` does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack

import hypothesis
import pytest

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from tests.support.cluster import ClusterAccess, Json, running_cluster, running_control_plane
from tests.support.installed import cluster_under_test, installed, shop_service

from localcluster.controlplane import ControlPlane

pytest_plugins = [
    "tests.support.blocked",
    "tests.support.flaky",
    "tests.support.lanes",
    "tests.support.report",
]
__all__ = ["cluster_under_test", "installed", "shop_service"]  # fixtures made elsewhere


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the tests that need a whole cluster."""
    group = parser.getgroup("pdserve")
    group.addoption(
        "--nodes",
        choices=("process", "kind", "kubeconfig"),
        default="process",
        help="cluster under test: process nodes, a new kind cluster, or the one of $KUBECONFIG",
    )
    group.addoption("--keep", action="store_true", help="leave the kind cluster up at the end")


def pytest_configure(config: pytest.Config) -> None:
    """Tests reach their clusters; a cancelled run (CI sends SIGTERM) ends them, as Ctrl-C does."""
    _without_proxies(config.getoption("--nodes"))
    # A busy machine is no counterexample, and one found by chance is no news of a change.
    hypothesis.settings.register_profile("pdserve", deadline=None, derandomize=True)
    hypothesis.settings.load_profile("pdserve")
    if "PYTEST_XDIST_WORKER" not in os.environ:

        def ended(*_: object) -> None:
            pytest.exit("ended by SIGTERM", returncode=128 + signal.SIGTERM)

        signal.signal(signal.SIGTERM, ended)


def _without_proxies(nodes: str) -> None:
    """No proxy comes between tests and what they start on this machine.

    Process nodes have pods all over 127.0.0.0/8, and Python's clients know no ranges in `no_proxy`:
    there, proxies go (what is fetched through them, `make` fetches before). Other clusters may need
    them for images or for the API server; what is theirs on this machine is at 127.0.0.1.
    """
    proxies = {v for v in os.environ if v.lower() in ("http_proxy", "https_proxy", "all_proxy")}
    if nodes == "process":
        for variable in proxies:
            del os.environ[variable]
    elif proxies:
        given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY")
        direct = ",".join(filter(None, (given, "127.0.0.1", "localhost")))
        os.environ.update(no_proxy=direct, NO_PROXY=direct)


@pytest.fixture(scope="session")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd and a real kube-apiserver, for tests marked `api`.

    `.kubeconfig` (administrator), `.server`, `.admin.token`, `.ca_file`. There are no controllers:
    nothing is garbage collected, namespaces never finish deleting, pods need no service account.
    Use a namespace or names of your own per test.
    """
    with running_control_plane(tmp_path_factory.mktemp("control-plane")) as plane:
        yield plane


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterAccess]:
    """A whole cluster with the 8 process nodes of examples/local, for tests marked `cluster`.

    Shared by all of them: use names of your own, delete what you made, and undo what you broke.
    """
    folder = tmp_path_factory.mktemp("cluster")
    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            # What this user fetched is not what its nodes show at /models.
            patch.setenv("PDSERVE_MODELS", str(folder / "models"))
            access = stack.enter_context(running_cluster(folder / "state"))
        yield access


@pytest.fixture
def run(cluster: ClusterAccess) -> Iterator[Callable[..., str]]:
    """Apply objects to the shared cluster, answering the last one's name; deleted afterwards."""
    applied: list[Json] = []

    def apply(*objects: Json) -> str:
        applied.extend(objects)
        cluster.apply(*objects)
        return str(objects[-1]["metadata"]["name"])

    yield apply
    for obj in applied:
        cluster.kubectl(
            "delete", obj["kind"], obj["metadata"]["name"],
            "--wait=false", "--ignore-not-found", "--grace-period=0", "--force",
        )  # fmt: skip
