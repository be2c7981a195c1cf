"""A PDService with a gateway pod at a fake API server, and `kubectl pdserve ask` against it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.support.fake_apiserver import FakeApiServer, Json

from pdserve.cli import kubectl

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SERVICES = "/apis/pdserve.io/v1alpha1/namespaces/prod/pdservices"
PODS = "/api/v1/namespaces/prod/pods"
SECRET = "/api/v1/namespaces/prod/secrets/keys"
READY = {"type": "Ready", "status": "True", "reason": "Serving", "message": ""}
WAIT = 60.0
"""Seconds within which anything waited for must have happened."""


def service(**spec: Any) -> Json:
    """examples/demo-pdservice.yaml (search by header, chat takes the rest), Ready, in `prod`."""
    value = yaml.safe_load((EXAMPLES / "demo-pdservice.yaml").read_text())
    value["metadata"] |= {"namespace": "prod", "generation": 1}
    value["spec"] |= spec
    value["status"] = {"conditions": [condition(READY)]}
    return value


def condition(given: Json) -> Json:
    return {"lastTransitionTime": "2026-01-01T00:00:00Z", "observedGeneration": 1, **given}


def gateway(name: str, ready: bool = True, **meta: Any) -> Json:
    return {
        "metadata": {"name": name, "namespace": "prod", **meta},
        "status": {"conditions": [{"type": "Ready", "status": str(ready)}]},
    }


def pods(*items: Json) -> Json:
    return {"kind": "PodList", "metadata": {"resourceVersion": "1"}, "items": list(items)}


class Cluster(FakeApiServer):
    """One PDService `demo` with a gateway pod, and a way to ask it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__()
        self.folder = folder
        self._capsys = capsys
        self.has(service(), gateway("demo-gateway-a"))

    def has(self, value: Json, *gateways: Json) -> None:
        self.objects[f"{SERVICES}/demo"] = value
        self.objects[SERVICES] = pods(value)
        self.objects["/apis/pdserve.io/v1alpha1/namespaces/prod/scenariogroups"] = pods()
        self.objects[PODS] = pods(*gateways)

    def ask(self, *options: str, prompt: str = "Hi", name: str = "demo") -> tuple[int, str, str]:
        """Exit status, standard output, standard error."""
        done = kubectl.main(self.command(*options, prompt=prompt, name=name))
        shown = self._capsys.readouterr()
        return done, shown.out, shown.err

    def command(self, *options: str, prompt: str = "Hi", name: str = "demo") -> list[str]:
        where = ["-n", "prod", "--kubeconfig", str(self.kubeconfig(self.folder))]
        return ["ask", *where, *options, name, *prompt.split(" ")]


def asking(cluster: Cluster) -> subprocess.Popen[bytes]:
    """The command in a process of its own, its output read as it comes."""
    program = "import sys; from pdserve.cli.kubectl import main; sys.exit(main())"
    return subprocess.Popen(
        [sys.executable, "-c", program, *cluster.command()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def refusal(code: str, message: str) -> Json:
    return {"error": {"message": message, "type": "t", "param": None, "code": code}}
