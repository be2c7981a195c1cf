"""`kubectl pdserve ask` against a service that wants an API key, as its user calls it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest
from tests.support import scenarios as s
from tests.support.installed import NAMESPACE, SERVICE, Installed
from tests.support.traffic import KEY, client

pytestmark = pytest.mark.cluster

PROGRAM = Path(sys.executable).parent / "kubectl-pdserve"
READER = "asker"
"""A user who may see PDServices and pods, and nothing else."""


@pytest.fixture
def shop(installed: Installed, shop_service: Mapping[str, float]) -> s.Cluster:
    """With PDService shop/shop Ready."""
    return installed.cluster


def ask(
    kubeconfig: Path, *words: str, **environment: str
) -> tuple[subprocess.CompletedProcess[str], str]:
    """What `ask` did in the shop's namespace, and the last line it said about it."""
    done = subprocess.run(
        [PROGRAM, "ask", "-n", NAMESPACE, "--kubeconfig", kubeconfig, SERVICE, *words],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={**os.environ, "PDSERVE_API_KEY": "", **environment},
    )
    return done, (done.stderr.splitlines() or [""])[-1]


def test_an_answer_streams_and_tells_who_gave_it(
    shop: s.Cluster, record_property: Callable[[str, object], None]
) -> None:
    done, line = ask(shop.kubeconfig, "How do I open a file?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert line.startswith("[scenario chat, prefill shop-chat-0-p"), done.stderr
    assert ", decode shop-chat-0-d" in line and ", TTFT " in line
    record_property("line", line)


def test_json_equals_what_the_openai_sdk_gets(shop: s.Cluster) -> None:
    done, _ = ask(
        shop.kubeconfig, "-o", "json", "--scenario", "search", "--completion",
        "--max-tokens", "5", "ships",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    value = json.loads(done.stdout)
    assert (value["scenario"], value["complete"]) == ("search", True)
    assert value["usage"]["completion_tokens"] <= 5
    served = {s.name_of(p) for p in s.pods(shop, NAMESPACE, scenario="search")}
    assert {value["prefill"], value["decode"]} <= served
    assert value["ttft_ms"] > 0
    gateway = s.gateways(shop, NAMESPACE, SERVICE)[0]
    same = client(shop.url(gateway)).completions.create(
        model=value["model"], prompt="ships", max_tokens=5
    )
    assert same.usage is not None
    assert same.usage.prompt_tokens == value["usage"]["prompt_tokens"]


def test_a_wrong_key_is_refused_and_says_where_it_was_from(shop: s.Cluster) -> None:
    done, line = ask(shop.kubeconfig, "hi", PDSERVE_API_KEY="wrong")
    assert done.returncode == 1
    assert "401 invalid_api_key" in done.stderr
    assert "from $PDSERVE_API_KEY" in line


def test_an_unknown_scenario_names_those_there_are(shop: s.Cluster) -> None:
    done, line = ask(shop.kubeconfig, "--scenario", "serach", "hi")
    assert (done.returncode, done.stdout) == (1, "")
    assert line.endswith("has no scenario 'serach'; there: search, chat")


@pytest.fixture
def reader(shop: s.Cluster, tmp_path: Path) -> Iterator[Path]:
    """Kubeconfig of READER."""
    role = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "Role",
        "metadata": {"name": READER},
        "rules": [
            {"apiGroups": ["pdserve.io"], "resources": ["pdservices"], "verbs": ["get"]},
            {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
        ],
    }
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": READER}}
    binding = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "RoleBinding",
        "metadata": {"name": READER},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": READER},
        "subjects": [{"kind": "ServiceAccount", "name": READER, "namespace": NAMESPACE}],
    }
    shop.apply(account, role, binding, namespace=NAMESPACE)
    asker = f"system:serviceaccount:{NAMESPACE}:{READER}"
    may = ("auth", "can-i", "get", "pdservices.pdserve.io", "-n", NAMESPACE, "--as", asker)
    # The API server's authorizer sees changes a moment later.
    s.until("the binding counts", lambda: shop.kubectl(*may, check=False).startswith("yes"))
    token = shop.kubectl("create", "token", READER, "-n", NAMESPACE).strip()
    config = json.loads(shop.kubectl("config", "view", "--raw", "-o", "json"))
    [context] = config["contexts"]
    context["context"]["user"] = READER
    config["users"] = [{"name": READER, "user": {"token": token}}]
    path = tmp_path / "kubeconfig"
    path.write_text(json.dumps(config))
    yield path
    for kind in ("rolebinding", "role", "serviceaccount"):
        shop.kubectl("delete", kind, READER, "-n", NAMESPACE, "--ignore-not-found")
    s.until("it counts no more", lambda: shop.kubectl(*may, check=False).startswith("no"))


def test_without_the_right_to_the_key_the_message_says_how_to_give_one(
    shop: s.Cluster, reader: Path
) -> None:
    done, _ = ask(reader, "hi")
    assert done.returncode == 1
    assert "may not read Secret 'keys'" in done.stderr and "set PDSERVE_API_KEY" in done.stderr


def test_without_the_right_to_the_proxy_the_message_names_the_right(
    shop: s.Cluster, reader: Path
) -> None:
    if shop.nodes == "process":
        pytest.skip("pods of process nodes are asked directly, without the API server")
    done, _ = ask(reader, "hi", PDSERVE_API_KEY=KEY)
    assert done.returncode == 1
    assert "resources: [pods/proxy], verbs: [create]" in done.stderr
    assert f"kubectl port-forward -n {NAMESPACE} svc/{SERVICE}-gateway" in done.stderr


def test_a_key_of_ones_own_and_the_right_to_proxy_suffice(shop: s.Cluster, reader: Path) -> None:
    proxy = (
        '[{"op": "add", "path": "/rules/-", "value": '
        + json.dumps({"apiGroups": [""], "resources": ["pods/proxy"], "verbs": ["create"]})
        + "}]"
    )
    shop.kubectl("patch", "role", READER, "-n", NAMESPACE, "--type=json", "-p", proxy)
    done, _ = s.until(
        "the role counts",
        lambda: (got := ask(reader, "hi", PDSERVE_API_KEY=KEY))[0].returncode == 0 and got,
    )
    assert done.stdout.strip()
