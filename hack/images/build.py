"""Builds pdserve's images: operator, gateway, engine, and has the Prometheus of the example.

What they stand on and where wheels come from is decided here (`base`, `wheels`), so that the same
command works with a registry and an index, behind mirrors, and with neither.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "operator"))
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from hack.images import base, extensions, model, prometheus, wheels
from hack.images.base import MACHINES, Python, Wheels
from hack.images.containers import Containers, ImagesError, find_engine, say
from hack.images.install import IMAGES
from hack.images.summary import Built, document, table

from localcluster.binaries import prometheus_tag
from pdserve import __version__
from pdserve.models.store import StoredModel

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = ROOT / "Dockerfile"
OUT = ROOT / "build"
INPUTS = (
    "Dockerfile",
    "LICENSE",
    "hack/constraints.txt",
    "hack/constraints-hashed.txt",
    "hack/images",
    "operator/pdserve",
)
INSTALL_EMULATOR = (
    "An emulator makes it possible (package qemu-user-static, or `docker run --privileged --rm "
    "tonistiigi/binfmt --install all`, with docker's buildx plugin), or a machine of that kind "
    "(`docker buildx create --append`)"
)
PASSED_ON = ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL", "PIP_TRUSTED_HOST")
EXAMPLES = """examples:
  hack/images/build.py                                    everything `make kind` needs
  hack/images/build.py --only engine --no-prometheus
  hack/images/build.py --base-image registry.example.com/python:3.13-slim
  hack/images/build.py --registry registry.example.com/team --tag 0.1.0-test
  hack/images/build.py --arch amd64,arm64
  hack/images/build.py --model smollm2-135m               engine with a real model in it
  make images REGISTRY=registry.example.com/team TAG=0.1.0-test BASE_IMAGE=python:3.13-slim
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    arguments = parse(argv)
    began = time.monotonic()
    try:
        engine = find_engine(arguments.tool)
        built, left_out = build(engine, arguments)
    except ImagesError as error:
        print(f"images: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nstopped", file=sys.stderr)
        return 130
    found = document(built, time.monotonic() - began)
    OUT.mkdir(exist_ok=True)
    (OUT / "images.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2) if arguments.output == "json" else table(built))
    return 1 if left_out else 0


def build(engine: Containers, arguments: argparse.Namespace) -> tuple[list[Built], list[str]]:
    """Make what was asked for, in the order of the table.

    Also names the architectures asked for that this engine can build nothing for.
    """
    # First: an unknown name, or no network, costs no minutes of building.
    weights = model.fetch(arguments.model) if arguments.model else None
    debian = base.debian_base(engine.tool)
    stand = base.choose(engine, arguments.base_image, base.default_base(DOCKERFILE), debian)
    python = base.inspect(engine, stand, os.environ.get("PIP_INDEX_URL") or base.INDEX)
    able = engine.architectures() if arguments.arch else [""]
    built: list[Built] = []
    left_out = []
    for arch in arguments.arch or able[:1]:
        if arch not in able:
            say(
                f"{arch}: no images, as nothing here builds or runs programs for it: {engine.tool} "
                f"does so for {', '.join(able)}. {INSTALL_EMULATOR}"
            )
            left_out.append(arch)
        elif arch == able[0]:
            built += _built_for(engine, arguments, stand, python, weights)
        else:
            foreign = base.debian_base(engine.tool, arch)
            other = replace(python, machine=MACHINES[arch])
            there = base.elsewhere(stand, debian, foreign)
            built += _built_for(engine, arguments, there, other, weights, arch)
    if arguments.prometheus:
        name, seconds = prometheus.ensure(engine, stand, OUT / "images" / "prometheus.log")
        built.append(_built(engine, name, seconds))
    return built, left_out


def _built_for(
    engine: Containers,
    arguments: argparse.Namespace,
    stand: str,
    python: Python,
    weights: StoredModel | None,
    arch: str = "",
) -> list[Built]:
    """Images on the base `stand`, the engine's with `weights` in it.

    `arch`: another architecture than the engine's own.
    """
    source = _wheels(python, arguments.wheels)
    where = "an index" if source == "index" else "the wheelhouse"
    say(f"base {stand}{f' for {arch}' if arch else ''}, wheels from {where}")
    if "gateway" in arguments.only:
        extensions.fill(python, ROOT)
    settings = {
        "BASE_IMAGE": stand,
        "WHEELS": source,
        "VERSION": __version__,
        "REVISION": revision(ROOT),
    }
    built = []
    for target in arguments.only:
        name = reference(arguments.registry, target, "-".join(filter(None, (arguments.tag, arch))))
        seconds = engine.build(
            name,
            ROOT,
            OUT / "images" / f"{'-'.join(filter(None, (target, arch)))}.log",
            dockerfile=DOCKERFILE,
            target=target,
            architecture=arch,
            arguments=settings,
            passed_on=PASSED_ON,
        )
        if weights is not None and target == "engine":
            log = OUT / "images" / f"{'-'.join(filter(None, ('model', arch)))}.log"
            seconds += model.add(engine, name, weights, log, arch)
        built.append(_built(engine, name, seconds))
    return built


def _built(engine: Containers, name: str, seconds: float) -> Built:
    image = engine.image(name)
    return Built(image, engine.find(image.base) if image.base else None, seconds)


def _wheels(python: Python, asked: str) -> Wheels:
    source = wheels.source(asked, python)
    if source == "wheelhouse":
        wheels.fill(python, ROOT)
    return source


def reference(registry: str, target: str, tag: str) -> str:
    """Full name of an image: [REGISTRY/]pdserve/TARGET:TAG."""
    return "/".join(filter(None, (registry.rstrip("/"), "pdserve", f"{target}:{tag}")))


def revision(root: Path) -> str:
    """The commit that last changed what is in the images, `-dirty` if they hold more than it.

    Not HEAD: a commit that changes documents does not make other images. Empty outside git, and
    without it.
    """
    if shutil.which("git") is None:
        return ""

    def git(*argv: str) -> str:
        done = subprocess.run(["git", *argv], cwd=root, capture_output=True, text=True, check=False)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("log", "-1", "--format=%H", "--", *INPUTS)
    dirty = git("status", "--porcelain", "--", *INPUTS)
    return f"{commit}-dirty" if commit and dirty else commit


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of a command line; ends the process with a message where one is wrong."""
    return _parser().parse_args(argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--base-image", metavar="IMAGE", default=os.environ.get("BASE_IMAGE") or None,
        help="an image with Python >= 3.11 (default: $BASE_IMAGE; else the Dockerfile's, else one"
        " made from Debian packages)",
    )  # fmt: skip
    parser.add_argument("--tag", default=__version__, help="default: %(default)s, as the chart's")
    parser.add_argument("--registry", default="", help="put before the names; nothing is pushed")
    parser.add_argument(
        "--only", type=_targets, default=IMAGES, metavar="TARGETS",
        help=f"comma-separated: {','.join(IMAGES)} (default: all)",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="NAME",
        help="a name of `pdserve model get`: put it into the engine's image, at /models/NAME",
    )  # fmt: skip
    parser.add_argument(
        "--arch", type=_architectures, default=(), metavar="ARCHS",
        help=f"comma-separated: {','.join(MACHINES)} (default: the engine's own); the tags of "
        "others than the engine's own end in -ARCH",
    )  # fmt: skip
    parser.add_argument(
        "--no-prometheus", dest="prometheus", action="store_false",
        help=f"leave out {prometheus.REPOSITORY}:{prometheus_tag()}",
    )  # fmt: skip
    parser.add_argument(
        "--wheels", choices=("auto", "index", "wheelhouse"), default="auto",
        help="auto: a wheelhouse put there by hand, else the index if builds reach it, else wheels"
        " downloaded by this machine",
    )  # fmt: skip
    parser.add_argument("--tool", help="docker or podman (default: the first that answers)")
    parser.add_argument(
        "-o", "--output", choices=("table", "json"), default="table",
        help="what to print; build/images.json is written anyway",
    )  # fmt: skip
    return parser


def _targets(text: str) -> tuple[str, ...]:
    return _chosen(text, IMAGES)


def _architectures(text: str) -> tuple[str, ...]:
    return _chosen(text, MACHINES)


def _chosen(text: str, known: Collection[str]) -> tuple[str, ...]:
    wanted = tuple(dict.fromkeys(text.split(",")))
    if unknown := [w for w in wanted if w not in known]:
        raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: choose from {', '.join(known)}")
    return wanted


if __name__ == "__main__":
    sys.exit(main())
