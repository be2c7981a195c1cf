"""The images by themselves: an unprivileged user, a read-only root, and only what is needed."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator

import pytest
from hack.images import install, prometheus
from hack.images.containers import ImagesError, find_engine

from localcluster.binaries import prometheus_tag
from pdserve import __version__
from pdserve.wire.routes import RouteTable

pytestmark = pytest.mark.e2e

IMAGES = ("operator", "gateway", "engine")
CONFINED = (
    "--read-only", "--tmpfs", "/tmp", "--user", "65532:65532", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges",
)  # fmt: skip
NOT_IN = {
    "operator": {"numpy", "tokenizers", "uvloop"},
    "gateway": {"kopf", "prometheus-api-client", "numpy", "tokenizers"},
    "engine": {"kopf", "kubernetes", "pydantic", "aiohttp", "requests", "huggingface-hub"},
}
IN_NONE = {"pip", "setuptools", "wheel", "pytest"}


class Containers:
    """Containers of one test module; `run` starts and forgets, `start` keeps until the end."""

    def __init__(self, tool: str) -> None:
        self.tool = tool
        self.started: list[str] = []

    def do(self, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([self.tool, *argv], capture_output=True, text=True, check=False)
        assert done.returncode == 0 or not check, f"{argv}: {done.stderr}"
        return done

    def run(self, image: str, *argv: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """The image's own command with these arguments, to its end."""
        return self.do("run", "--rm", *CONFINED, reference(image), *argv, check=check)

    def python(self, image: str, *argv: str) -> str:
        """What Python prints in a fresh container."""
        entry = ("--entrypoint", "python")
        return self.do("run", "--rm", *CONFINED, *entry, reference(image), *argv).stdout

    def start(self, image: str, *argv: str) -> str:
        """A running container's id."""
        made = self.do("run", "--detach", *CONFINED, reference(image), *argv).stdout.strip()
        self.started.append(made)
        return made

    def inside(self, container: str, code: str, *argv: str) -> str | None:
        """What Python code prints in a running container; None if it failed."""
        done = self.do("exec", container, "python", "-c", code, *argv, check=False)
        return done.stdout if done.returncode == 0 else None

    def logs(self, container: str) -> str:
        done = self.do("logs", container)
        return done.stdout + done.stderr

    def stop(self, container: str) -> tuple[int, float]:
        """Exit code after SIGTERM, and seconds until then."""
        began = time.monotonic()
        self.do("stop", "--time", "20", container)
        took = time.monotonic() - began
        return int(self.do("inspect", "--format", "{{.State.ExitCode}}", container).stdout), took


def reference(image: str) -> str:
    return f"pdserve/{image}:{__version__}"


def until(what: str, check: Callable[[], str | None], seconds: float = 30.0) -> str:
    deadline = time.monotonic() + seconds
    while (answer := check()) is None:
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.1)
    return answer


@pytest.fixture(scope="module")
def containers() -> Iterator[Containers]:
    try:
        engine = find_engine(None)
    except ImagesError as error:
        pytest.skip(" ".join(str(error).splitlines()[:-1]))
    for image in IMAGES:
        assert engine.find(reference(image)), f"{reference(image)} is not there: make images"
    made = Containers(engine.tool)
    yield made
    for container in made.started:
        made.do("rm", "--force", "--volumes", container)


LOOK = """
import importlib.metadata, importlib.util, json, os, pathlib, shutil, sys, tempfile
def writable(path):
    try:
        with tempfile.TemporaryFile(dir=path):
            return True
    except OSError:
        return False
modules = [p for p in pathlib.Path("/opt/pdserve").rglob("*.py")]
caches = [pathlib.Path(importlib.util.cache_from_source(str(p))) for p in modules]
print(json.dumps({
    "uid": os.getuid(),
    "gid": os.getgid(),
    "writable": [p for p in ("/", "/opt/pdserve", "/home", "/var/tmp", "/usr") if writable(p)],
    "tmp": writable("/tmp"),
    "distributions": [d.name.lower().replace("_", "-") for d in importlib.metadata.distributions()],
    "programs": [p for p in ("pip", "pip3", "gcc", "cc", "make", "apt-get") if shutil.which(p)],
    "tests": [str(p) for p in pathlib.Path("/opt/pdserve").rglob("tests")],
    "modules": len(modules),
    "checked": [str(m) for m, c in zip(modules, caches)
                if not c.exists() or c.read_bytes()[4:8] != bytes([1, 0, 0, 0])],
    "licence": pathlib.Path("/opt/pdserve/app/LICENSE").exists(),
    "code": sorted(p.name for p in pathlib.Path("/opt/pdserve/app").iterdir()),
    "parts": sorted(p.stem for p in pathlib.Path("/opt/pdserve/app/pdserve").iterdir()
                    if not p.name.startswith("__") and p.name != "py.typed"),
}))
"""


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_holds_what_its_process_needs(containers: Containers, image: str) -> None:
    found = json.loads(containers.python(image, "-c", LOOK))
    assert (found["uid"], found["gid"]) == (65532, 65532)
    assert found["tmp"] is True
    assert found["writable"] == []
    assert found["programs"] == []
    assert found["tests"] == []
    distributions = {*found["distributions"]}
    assert {"orjson", "pyyaml"} <= distributions
    assert distributions & (IN_NONE | NOT_IN[image]) == set()
    assert found["licence"] is True
    shared = [name for name in found["code"] if name.endswith(".so")]
    assert [name for name in found["code"] if name not in shared] == ["LICENSE", "pdserve"]
    # What the gateway's compiled modules share; none where this machine cannot compile for it.
    assert len(shared) <= (image == "gateway")
    assert found["parts"] == sorted({part.split(".")[0] for part in install.PARTS[image]})
    assert found["modules"] > 200
    # A read-only root cannot keep what Python compiles; PEP 552's unchecked hashes need no look.
    assert found["checked"] == []


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_says_what_it_is(containers: Containers, image: str) -> None:
    [found] = json.loads(containers.do("image", "inspect", reference(image)).stdout)
    config = found["Config"]
    assert config["User"] == "65532:65532"
    prefix = "org.opencontainers.image."
    labels = {k.removeprefix(prefix): v for k, v in config["Labels"].items()}
    assert labels["version"] == __version__
    assert labels["licenses"] == "Apache-2.0"
    assert labels["base.name"]
    assert "revision" in labels


def test_the_operator_starts_and_says_what_it_misses(containers: Containers) -> None:
    assert "--lease-name" in containers.run("operator", "--help").stdout
    done = containers.run("operator", check=False)
    assert done.returncode == 2
    assert "this is not a pod" in done.stderr


ASK = """
import json, sys, urllib.request
body = sys.argv[2].encode() if len(sys.argv) > 2 else None
headers = {"content-type": "application/json"}
request = urllib.request.Request("http://127.0.0.1:8000" + sys.argv[1], body, headers)
print(urllib.request.urlopen(request, timeout=10).read().decode())
"""


def test_an_engine_answers_and_stops_when_told(containers: Containers) -> None:
    engine = containers.start("engine", "--role", "both")
    until("the engine is ready", lambda: containers.inside(engine, ASK, "/readyz"))
    body = {"model": "reference", "prompt": "Return the", "max_tokens": 8, "temperature": 0}
    answer = containers.inside(engine, ASK, "/v1/completions", json.dumps(body))
    assert answer is not None, containers.logs(engine)
    found = json.loads(answer)
    assert found["usage"]["completion_tokens"] == 8
    assert found["choices"][0]["text"].strip()

    # The gateway's image also holds the load generator.
    load = containers.do(
        "run", "--rm", *CONFINED, "--network", f"container:{engine}", "--entrypoint", "python",
        reference("gateway"), "-m", "pdserve.cli.load", "--url", "http://127.0.0.1:8000",
        "--model", "reference", "--rate", "5", "--seconds", "1", "--max-tokens", "4",
    )  # fmt: skip
    samples = [json.loads(line) for line in load.stdout.splitlines()]
    assert samples
    assert all(sample["status"] == 200 for sample in samples)

    code, took = containers.stop(engine)
    assert code == 0, containers.logs(engine)
    assert took < 15


WRITE = "import pathlib, sys; pathlib.Path('/tmp/routes.json').write_text(sys.argv[1])"


def test_a_gateway_follows_a_file_and_stops_when_told(containers: Containers) -> None:
    gateway = containers.start("gateway", "--routes", "file:/tmp/routes.json")
    until("the gateway is up", lambda: containers.inside(gateway, ASK, "/healthz"))
    assert containers.inside(gateway, ASK, "/readyz") is None
    table = RouteTable("shop", 1, "tiny", "Reference", ())
    containers.inside(gateway, WRITE, json.dumps(table.to_json()))
    models = until("the table is in use", lambda: containers.inside(gateway, ASK, "/v1/models"))
    assert json.loads(models)["object"] == "list"
    code, took = containers.stop(gateway)
    assert code == 0, containers.logs(gateway)
    assert took < 15


def test_prometheus_runs_as_the_example_runs_it(containers: Containers) -> None:
    name = f"{prometheus.REPOSITORY}:{prometheus_tag()}"
    confined = [part if part != "65532:65532" else "65534" for part in CONFINED]
    started = containers.do(
        "run", "--detach", *confined, "--volume", "/prometheus", name,
        "--config.file=/dev/null", "--storage.tsdb.path=/prometheus",
    ).stdout.strip()  # fmt: skip
    containers.started.append(started)

    def ready() -> str | None:
        logs = containers.logs(started)
        return logs if "ready to receive web requests" in logs else None

    try:
        until("Prometheus is ready", ready)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{containers.logs(started)}") from error
    code, _ = containers.stop(started)
    assert code == 0
