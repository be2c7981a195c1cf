"""`docker` and `kind` programs that keep their state in a file, and the API of what they "made".

What they answer was copied from the real programs (Docker 20.10 and 28, kind v0.33); that the real
ones still do so is shown by the tests in tests/e2e.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pdserve.dst.api_server import FakeApi
from pdserve.kube.client import KubeClient
from pdserve.kube.request import KubeRequest
from pdserve.kube.resource import NODES

_PROGRAM = """#!{python} -IS
import fcntl, json, os, sys, time
STATE = {state!r}
def load():
    with open(STATE) as file:
        return json.load(file)
def save(state):
    with open(STATE + ".new", "w") as file:
        json.dump(state, file)
    os.rename(STATE + ".new", STATE)
def run_node(name, cluster, role):
    state["containers"][name] = {{
        "cluster": cluster, "role": role, "state": "running", "store": {{}}}}
    save(state)
def option(name):
    return argv[argv.index(name) + 1]
def fail(text, code=1):
    sys.stderr.write(text + "\\n")
    sys.exit(code)
def load_into(node, archive):
    for image in json.load(archive):
        identity = state["images"][image]
        if state["containerd"]:
            identity = "sha256:of-the-config-of-" + image
        state["containers"][node]["store"]["docker.io/" + image] = identity
    save(state)
me, argv = os.path.basename(sys.argv[0]), sys.argv[1:]
lock = open(STATE + ".lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX)
state = load()
if state["late"] and time.monotonic() >= state["late"]["at"]:
    cluster, state["late"] = state["late"]["cluster"], None
    run_node(cluster + "-worker", cluster, "worker")
if me != "docker" or argv[0] != "version":
    state["calls"].append([me, *argv])
    save(state)
if me == "docker":
    if state["down"]:
        fail("Cannot connect to the Docker daemon at unix:///run/docker.sock. Is it running?")
    if argv[0] == "version":
        print("28.2.2")
    elif argv[:2] == ["image", "inspect"]:
        if argv[-1] not in state["images"]:
            fail("[]\\nError response from daemon: No such image: " + argv[-1])
        print(state["images"][argv[-1]])
    elif argv[0] == "ps" and "=" not in option("--filter").partition("label=")[2]:
        for name, node in state["containers"].items():
            if node["state"] == "running":
                print(node["cluster"], name, sep="\\t")
    elif argv[0] == "ps":
        cluster = option("--filter").rpartition("=")[2]
        for name, node in state["containers"].items():
            if node["cluster"] == cluster:
                print(name, node["role"], node["state"], sep="\\t")
    elif argv[0] == "start":
        for name in argv[1:]:
            state["containers"][name]["state"] = "running"
        save(state)
    elif argv[0] == "save":
        with open(option("--output"), "w") as file:
            json.dump(argv[3:], file)
    elif argv[0] == "exec" and argv[2:] == ["containerd", "config", "dump"]:
        print('[plugins."io.containerd.cri.v1.images"]\\nsnapshotter = "native"')
    elif argv[0] == "exec" and argv[2:4] == ["sh", "-c"] and "inotify" in argv[4]:
        if state["inotify"] is None:
            fail("OCI runtime exec failed")
        print(*state["inotify"], sep="\\n")
    elif argv[0] == "exec" and "import" in argv:
        if state["ctr"] == "old":
            fail("flag provided but not defined: -local")
        load_into(argv[2], sys.stdin)
    elif argv[0] == "exec":
        store = state["containers"][argv[1]]["store"]
        print(json.dumps({{"images": [{{"id": i, "repoTags": [t]}} for t, i in store.items()]}}))
    else:
        fail("docker: " + argv[0])
elif argv[:2] == ["get", "clusters"]:
    names = sorted({{node["cluster"] for node in state["containers"].values()}})
    print("\\n".join(names)) if names else sys.stderr.write("No kind clusters found.\\n")
elif argv[:2] == ["create", "cluster"]:
    name = option("--name")
    sys.stderr.write("Creating cluster ...\\n \\u2022 Preparing nodes \\U0001f4e6  ...\\n")
    sys.stderr.flush()
    if state["create"] == "pull":
        fail('ERROR: failed to create cluster: failed to pull image "kindest/node:v9"')
    run_node(name + "-control-plane", name, "control-plane")
    if state["create"] == "fail":
        fail("ERROR: failed to create cluster: failed to init node with kubeadm")
    if state["create"] in ("hang", "late"):
        fcntl.flock(lock, fcntl.LOCK_UN)
        time.sleep(600)
    for number in range(state["workers"]):
        run_node(name + "-worker" + (str(number + 1) if number else ""), name, "worker")
    with open(option("--kubeconfig"), "w") as file:
        json.dump({{"clusters": [{{"cluster": {{"server": "https://127.0.0.1:6443"}}}}]}}, file)
elif argv[:2] == ["delete", "cluster"]:
    name = option("--name")
    kept = {{n: c for n, c in state["containers"].items() if c["cluster"] != name}}
    state["containers"] = kept
    if state["create"] == "late":
        # The engine goes on with what it was asked for: soon it runs one node more.
        state["create"], state["late"] = "", {{"cluster": name, "at": time.monotonic() + 0.2}}
    save(state)
elif argv[:2] == ["load", "image-archive"]:
    with open(argv[-1]) as archive:
        load_into(option("--nodes"), archive)
else:
    fail(me + ": " + " ".join(argv))
"""


@dataclass
class FakeEngine:
    """The engine behind the programs in `folder`; `install` makes them."""

    folder: Path
    api: FakeApi = field(default_factory=FakeApi)

    def install(self) -> None:
        """Write the programs; `folder` then goes on PATH."""
        self.folder.mkdir()
        self.set(
            down=False, create="", workers=2, images={}, containers={}, calls=[],
            containerd=False, ctr="new", late=None, inotify=[8192, 20],
        )  # fmt: skip
        text = _PROGRAM.format(python=sys.executable, state=str(self._file))
        for name in ("docker", "kind"):
            (self.folder / name).write_text(text)
            (self.folder / name).chmod(0o755)

    @property
    def state(self) -> dict[str, Any]:
        """What the programs would see now."""
        state: dict[str, Any] = json.loads(self._file.read_text())
        return state

    def set(self, **changes: Any) -> None:
        """Change what they see."""
        before = self.state if self._file.exists() else {}
        self._file.write_text(json.dumps(before | changes))

    def calls(self, *beginning: str) -> list[list[str]]:
        """Calls so far that begin like this, without the program's name."""
        size = len(beginning)
        return [c[1:] for c in self.state["calls"] if tuple(c[1 : size + 1]) == beginning]

    @property
    def nodes(self) -> Mapping[str, Any]:
        """Containers by name."""
        containers: Mapping[str, Any] = self.state["containers"]
        return containers

    async def connect(self, *_: Any, **__: Any) -> KubeClient:
        """In place of `pdserve.kube.connect.connect`: an API with the nodes that run."""
        known = {n["metadata"]["name"] for n in self.api.objects(NODES)}
        for name, container in self.nodes.items():
            if name not in known:
                node = _node(name, container["role"])
                self.api.handle(KubeRequest("create", NODES, body=node))
                self.api.handle(
                    KubeRequest("patch", NODES, None, name, "status", body=node, patch="merge")
                )
        return self.api.client()

    @property
    def _file(self) -> Path:
        return self.folder / "state.json"


def _node(name: str, role: str) -> dict[str, Any]:
    taint = {"key": "node-role.kubernetes.io/control-plane", "effect": "NoSchedule"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name},
        "spec": {"taints": [taint] if role == "control-plane" else []},
        "status": {
            "conditions": [{"type": "Ready", "status": "True"}],
            "addresses": [{"type": "InternalIP", "address": "172.18.0.2"}],
            "nodeInfo": {"kubeletVersion": "v1.36.3"},
        },
    }
