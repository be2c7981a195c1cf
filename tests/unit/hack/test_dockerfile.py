"""The Dockerfile: each image has its dependencies and no more, runs as nobody, needs no shell."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hack.images import install

from pdserve import __version__
from pdserve.wire import names

ROOT = Path(__file__).resolve().parents[3]
MODULES = {"operator": "pdserve.controllers", "gateway": "pdserve.gateway",
           "engine": "pdserve.refengine"}  # fmt: skip
PORTS = {"operator": {names.PORT_METRICS}, "gateway": {names.PORT_HTTP, names.PORT_METRICS},
         "engine": {names.PORT_HTTP, names.PORT_TRANSFER}}  # fmt: skip
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def stages() -> dict[str, list[tuple[str, str]]]:
    """Stage -> its instructions, as (word, rest)."""
    found: dict[str, list[tuple[str, str]]] = {}
    text = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
    stage = ""
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if not word or word.startswith("#"):
            continue
        if word == "FROM":
            stage = rest.split(" AS ")[1]
        found.setdefault(stage, []).append((word, rest.strip()))
    return found


def values(stage: str, word: str) -> list[str]:
    return [rest for w, rest in stages()[stage] if w == word]


def test_there_is_a_target_for_each_image_of_an_extra() -> None:
    assert set(MODULES) == set(install.IMAGES)
    assert set(install.IMAGES) <= stages().keys() & PROJECT["optional-dependencies"].keys()


@pytest.mark.parametrize("image", install.IMAGES)
def test_an_image_runs_its_process_as_nobody(image: str) -> None:
    [entrypoint] = values(image, "ENTRYPOINT")
    python, flag, module = json.loads(entrypoint)  # the form without a shell
    assert (flag, module) == ("-m", MODULES[image])
    assert python.startswith("/")
    assert (ROOT / "operator" / Path(*module.split(".")) / "__main__.py").exists()
    assert values(image, "USER")[-1] == "65532:65532"
    assert {int(p) for line in values(image, "EXPOSE") for p in line.split()} == PORTS[image]
    [label] = values(image, "LABEL")
    keys = set(re.findall(r"org\.opencontainers\.image\.([a-z.]+)=", label))
    assert {"title", "version", "revision", "licenses", "base.name"} <= keys
    assert f"VERSION={__version__}" in values(image, "ARG")


@pytest.mark.parametrize("image", install.IMAGES)
def test_an_image_holds_its_own_dependencies(image: str) -> None:
    sources = [line.split()[0] for line in values(image, "COPY")]
    assert sources == [f"--from={image}-dependencies", f"--from={image}-code"]
    for step in ("dependencies", "code"):
        [run] = values(f"{image}-{step}", "RUN")
        assert json.loads(run)[-2:] == [step, image]
    wanted = install.wanted(PROJECT, image)
    assert wanted == [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][image]]
    assert any(r.startswith("orjson") for r in wanted)


def test_builds_need_no_shell() -> None:
    for stage in stages():
        for command in values(stage, "RUN"):
            assert json.loads(command)[0] == "python3"


def test_the_context_has_what_is_copied_and_nothing_else() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert "*" in lines
    kept = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        path
        for stage in stages()
        for line in values(stage, "COPY")
        if not line.startswith("--from")
        for path in line.split()[:-1]
    }
    assert kept == copied
    assert all((ROOT / path).exists() for path in copied)


def test_steps_know_what_stands_alone() -> None:
    assert install.standalone("tokenizers>=0.21")
    assert not install.standalone("tokenizers-extra>=1")
    requirements = [r for image in install.IMAGES for r in install.wanted(PROJECT, image)]
    for name in install.STANDALONE:
        assert any(r.startswith(name) for r in requirements), f"{name} is no requirement any more"


LOADS = """
import sys
import pdserve.{module}, pdserve.gateway.app, pdserve.kube.connect
import kubernetes.config, kubernetes.client
print(*sys.modules)
"""


def test_nothing_loads_what_the_images_leave_out() -> None:
    """Kubernetes' generated classes, and what tokenizers would ask a model hub with."""
    for module in ("controllers.app", "refengine.server"):
        done = subprocess.run(
            [sys.executable, "-c", LOADS.format(module=module)],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        loaded = set(done.stdout.split())
        assert "kubernetes.aio.client.api_client" in loaded
        left_out = {
            name.rpartition(".")[2]
            for package in install.UNUSED
            for name in loaded
            for part in ("api", "models")
            if name.startswith(f"{package.replace('/', '.')}.{part}.")
        }
        assert left_out <= {*install.KEPT}
        assert "huggingface_hub" not in loaded


def test_no_module_asks_kubernetes_for_a_generated_class() -> None:
    imported = set()
    for path in (ROOT / "operator" / "pdserve").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("kubernetes"):
                imported |= {f"{node.module}.{alias.name}" for alias in node.names}
            if isinstance(node, ast.Import):
                imported |= {a.name for a in node.names if a.name.split(".")[0] == "kubernetes"}
    whole = {"kubernetes", "kubernetes.client", "kubernetes.aio", "kubernetes.aio.client"}
    assert imported
    assert not imported & (whole | {f"{name}.client" for name in whole})
    assert not [n for n in imported if re.search(r"\.(api|models)\.", n)]
