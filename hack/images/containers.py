"""The container engine of this machine: docker, or podman where only that is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster.commands import CommandError, follow
from localcluster.errors import sparsely

TOOLS = ("docker", "podman")
BASE_LABEL = "org.opencontainers.image.base.name"


class ImagesError(Exception):
    """The images cannot be made; the message says why and what to do."""


def say(line: str) -> None:
    """One line of progress on standard error."""
    print(line, file=sys.stderr, flush=True)


@dataclass(frozen=True, slots=True)
class Image:
    """An image as the engine has it. `size` in bytes, of all its layers."""

    name: str
    id: str
    size: int
    base: str = ""
    """Name of what it stands on, where its labels say so."""
    architecture: str = ""
    """As Go calls it: amd64, arm64."""


class Containers:
    """One engine, by its command line."""

    def __init__(self, tool: str, environment: Mapping[str, str]) -> None:
        self.tool = tool
        self._environment = dict(environment)

    def find(self, name: str) -> Image | None:
        """An image the engine has; None if it has not."""
        done = self._ask("image", "inspect", name)
        if done.returncode:
            return None
        [found] = json.loads(done.stdout)
        labels = (found.get("Config") or {}).get("Labels") or {}
        return Image(
            name,
            found["Id"].removeprefix("sha256:"),
            int(found["Size"]),
            labels.get(BASE_LABEL, ""),
            found.get("Architecture", ""),
        )

    def image(self, name: str) -> Image:
        """As `find`, of an image that must be there.

        Raises:
            ImagesError: it is not there.
        """
        if (found := self.find(name)) is None:
            raise ImagesError(f"{self.tool} has no image {name} though it was just made")
        return found

    def architectures(self) -> list[str]:
        """Those it builds images for: its own first, then those of emulators and other builders.

        Raises:
            ImagesError: it does not say its own.
        """
        if self.tool == "docker":
            own = self._ask("version", "--format", "{{.Server.Arch}}").stdout.strip()
            # Without the plugin it fails: the older builder builds for its own machine alone.
            said = self._ask("buildx", "inspect").stdout
            more = re.findall(r"linux/(\w+)", " ".join(re.findall(r"^Platforms:.*", said, re.M)))
        else:
            host = json.loads(self._ask("info", "--format", "json").stdout or "{}").get("host", {})
            own = host.get("arch", "")
            more = [name.partition("/")[2] for name in host.get("emulatedArchitectures") or ()]
        if not own:
            raise ImagesError(f"{self.tool} does not say which architecture it runs on")
        return list(dict.fromkeys([own, *more]))

    def pull(self, name: str) -> None:
        """Fetch an image from its registry.

        Raises:
            ImagesError: it cannot be fetched; the message ends with the engine's last line.
        """
        say(f"pulling {name}")
        done = self._ask("pull", name)
        if done.returncode:
            lines = done.stderr.strip().splitlines() or ["no reason given"]
            raise ImagesError(f"{name} cannot be pulled: {lines[-1]}")

    def run_python(self, image: str, script: str, *arguments: str) -> str:
        """What a Python script prints in a fresh container of `image`.

        Raises:
            ImagesError: the script fails, or the image has no python3.
        """
        done = self._ask(
            "run", "--rm", "--user", "0", *self._proxies("--env"), "--entrypoint", "python3",
            image, "-c", script, *arguments,
        )  # fmt: skip
        if done.returncode:
            why = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
            raise ImagesError(f"{image}: python3 does not run in it: {why}")
        return done.stdout

    def build(
        self,
        name: str,
        context: Path,
        log: Path,
        *,
        dockerfile: Path,
        target: str = "",
        architecture: str = "",
        arguments: Mapping[str, str] | None = None,
        passed_on: Iterable[str] = (),
    ) -> float:
        """Build an image; seconds it took. `passed_on` names arguments taken from the environment.

        `architecture`: another than the engine's own, one of `architectures`.

        Raises:
            ImagesError: with the end of the log.
        """
        argv = ["build", "--file", str(dockerfile), "--tag", name]
        if architecture:
            # A builder elsewhere keeps what it built unless an option orders it to hand that over.
            argv = ["buildx", *argv, "--load"] if self.tool == "docker" else argv
            argv += ["--platform", f"linux/{architecture}"]
        argv += ["--target", target] if target else []
        for key, value in (arguments or {}).items():
            argv += ["--build-arg", f"{key}={value}"]
        for key in passed_on:
            argv += ["--build-arg", key] if self._environment.get(key) else []
        argv += [*self._proxies("--build-arg"), str(context)]
        began = time.monotonic()
        still = sparsely(say)
        log.parent.mkdir(parents=True, exist_ok=True)
        try:
            follow(
                [self.tool, *argv],
                log,
                env=self._environment,
                tick=lambda seconds: still(f"building {name}: {seconds:.0f} s"),
            )
        except CommandError as error:
            raise ImagesError(f"building {name}: {error}\n(all of it: {log})") from error
        return time.monotonic() - began

    def _proxies(self, flag: str) -> list[str]:
        names = ("http_proxy", "https_proxy", "no_proxy")
        found = [n for name in names for n in (name, name.upper()) if self._environment.get(n)]
        return [part for name in found for part in (flag, name)]

    def _ask(self, *argv: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.tool, *argv], capture_output=True, text=True, check=False, env=self._environment
        )


def find_engine(chosen: str | None, environment: Mapping[str, str] = os.environ) -> Containers:
    """The engine to use: the chosen tool, else the first whose engine answers.

    Raises:
        ImagesError: none answers; the message has each tool's reason.
    """
    failures = []
    for tool in (chosen,) if chosen else TOOLS:
        if shutil.which(tool, path=environment.get("PATH")) is None:
            failures.append(f"{tool}: not installed")
            continue
        done = subprocess.run(
            [tool, "info"], capture_output=True, text=True, check=False, env=dict(environment)
        )
        if done.returncode == 0:
            return Containers(tool, _builder(tool, environment))
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        failures.append(f"{tool}: {lines[-1].strip() if lines else 'does not answer'}")
    raise ImagesError(
        "no container engine answers:\n"
        + "\n".join(f"- {line}" for line in failures)
        + "\nStart Docker or Podman, or set DOCKER_HOST to an engine's socket. "
        "Without containers: pdserve local up (process nodes need no images)."
    )


def _builder(tool: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of Docker's client, so that one command suits its two builders.

    Without the buildx plugin the client asks for BuildKit and fails: then the older builder is
    asked for. With it, images get attestations, which `kind load` cannot take, and which change
    with every build.
    """
    chosen = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1", **environment}
    if tool == "docker" and "DOCKER_BUILDKIT" not in chosen:
        plugin = subprocess.run(
            [tool, "buildx", "version"], capture_output=True, check=False, env=chosen
        )
        if plugin.returncode:
            chosen["DOCKER_BUILDKIT"] = "0"
    return chosen
