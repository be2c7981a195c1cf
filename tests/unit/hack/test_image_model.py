"""`make images MODEL=...`: the engine's image holds the model where a PDService names it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hack.images import build, model
from hack.images.containers import Containers, ImagesError
from tests.support.tiny_model import NAME, tiny_index

from pdserve.api import PDService
from pdserve.models.catalog import CATALOG, IN_CONTAINERS
from pdserve.models.store import get_model

ROOT = Path(__file__).resolve().parents[3]
DOCKER = """#!/bin/sh
echo "$@" >> {log}
case "$1" in
  run) echo '{{"python": [3, 12], "machine": "x86_64", "libc": "glibc", "libc_version": "2.36",' \\
            '"index": true}}' ;;
  image) echo '[{{"Id": "sha256:e", "Size": 5, "Architecture": "amd64"}}]' ;;
esac
[ "$1" = build ] && {{ for context; do :; done; (cd "$context" && ls -l); }}
exit {status}
"""


@pytest.fixture
def fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The model's directory, with a file that this user alone may read."""
    monkeypatch.setenv("PDSERVE_MODELS", str(tmp_path / "models"))
    tiny_index(tmp_path, monkeypatch)
    folder = get_model(NAME).folder
    (folder / "model.safetensors").chmod(0o600)
    return folder


def docker(folder: Path, status: int = 0) -> Containers:
    """An engine that writes its command lines to `asked`, and lists a build's context."""
    program = folder / "docker"
    program.write_text(DOCKER.format(log=folder / "asked", status=status))
    program.chmod(0o755)
    return Containers("docker", {"PATH": f"{folder}:/usr/bin:/bin"})


def asked(folder: Path) -> str:
    path = folder / "asked"
    return path.read_text() if path.exists() else ""


def test_the_model_goes_into_the_engines_image_under_its_name(
    fetched: Path, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    model.add(docker(tmp_path), "reg.example/pdserve/engine:1", model.fetch(NAME), log)
    [command] = asked(tmp_path).splitlines()
    assert f"build --file {model.DOCKERFILE} --tag reg.example/pdserve/engine:1 " in command
    assert "--build-arg ENGINE=reg.example/pdserve/engine:1 " in command
    assert f"--build-arg FOLDER=/models/{NAME}/ " in command
    listed = [line.split() for line in log.read_text().splitlines() if line.startswith("-")]
    assert {words[-1]: words[0][:10] for words in listed} == {
        file.name: "-rw-r--r--" for file in fetched.iterdir()
    }, "all of it and no more, and the engine's user may read it"


@pytest.mark.parametrize("wanted", [NAME, None])
@pytest.mark.usefixtures("fetched")
def test_of_all_images_the_engines_alone_gets_it_after_it_was_built(
    wanted: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build, "OUT", tmp_path)
    options = ["--base-image", "base:1", "--tag", "1", "--wheels", "index", "--no-prometheus"]
    arguments = build.parse([*options, *(["--model", wanted] if wanted else [])])
    built, left_out = build.build(docker(tmp_path), arguments)
    builds = [line for line in asked(tmp_path).splitlines() if line.startswith("build ")]
    made = [line.partition("--tag ")[2].split()[0] for line in builds]
    engines = ["pdserve/engine:1"] * (2 if wanted else 1)
    assert made == ["pdserve/operator:1", "pdserve/gateway:1", *engines]
    assert [str(model.DOCKERFILE) in line for line in builds[-2:]] == [False, bool(wanted)]
    assert ([b.image.name for b in built], left_out) == (list(dict.fromkeys(made)), [])


def test_the_layer_stands_on_that_image_and_runs_what_it_runs() -> None:
    lines = model.DOCKERFILE.read_text().splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert words == ["ARG", "FROM", "ARG", "COPY", "ARG", "LABEL"], "entrypoint and user stay"
    assert {"FROM ${ENGINE}", "COPY . ${FOLDER}"} <= set(lines)


def test_a_build_that_fails_shows_its_log(fetched: Path, tmp_path: Path) -> None:
    found = model.fetch(NAME)
    assert found.folder == fetched
    with pytest.raises(ImagesError, match=r"building e:1: .* failed \(exit 3\)"):
        model.add(docker(tmp_path, status=3), "e:1", found, tmp_path / "log")


@pytest.mark.usefixtures("fetched")
def test_an_unknown_model_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    arguments = build.parse(["--model", "llama-9", "--no-prometheus"])
    with pytest.raises(ImagesError, match=r"no model 'llama-9'; known are tiny"):
        build.build(docker(tmp_path), arguments)
    assert asked(tmp_path) == ""


def test_a_model_that_was_changed_is_not_put_into_an_image(fetched: Path) -> None:
    (fetched / "config.json").write_text("{}")
    with pytest.raises(ImagesError, match=r"changed in .*: config\.json .*--again"):
        model.fetch(NAME)


@pytest.mark.parametrize("name", CATALOG)
def test_the_example_names_the_path_in_the_image(name: str) -> None:
    text = (ROOT / "examples" / name / "pdservice.yaml").read_text()
    service = PDService.parse(yaml.safe_load(text))
    assert service.spec.model.name == name
    assert service.spec.model.source is not None
    assert service.spec.model.source.path == f"{IN_CONTAINERS}/{name}"
