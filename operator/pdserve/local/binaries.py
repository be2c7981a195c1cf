"""Finds or makes the programs a local cluster runs: Kubernetes, Helm, Prometheus, kind.

Order, first that works: 1. an environment variable naming them; 2. the cache; 3. `PATH` (Helm
and kind only: any version will do); 4. a build from Go modules (`gobuild`); 5. for Kubernetes,
etcd and kind, the official release (`download`). A program made in 4 or 5 is kept in the cache
under a name that changes with its version and recipe, so it is made once per machine.
"""

from __future__ import annotations

import os
import platform
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from pdserve.local import gobuild
from pdserve.local.download import download_kind, download_kubernetes
from pdserve.local.errors import LocalError, Progress, quiet
from pdserve.local.gobuild import Recipe
from pdserve.local.paths import cache_dir, checkout

KUBERNETES_VERSION = "v1.36.3"
HELM_VERSION = "v3.22.0"
PROMETHEUS_VERSION = "v0.315.0"
KIND_VERSION = "v0.33.0"

ENV_KUBE = "PDSERVE_KUBE_BIN"
ENV_KUBEBUILDER = "KUBEBUILDER_ASSETS"
ENV_HELM = "PDSERVE_HELM"
ENV_PROMETHEUS = "PDSERVE_PROMETHEUS"
ENV_KIND = "PDSERVE_KIND"

API_PROGRAMS = ("etcd", "kube-apiserver")
ALL_PROGRAMS = (*API_PROGRAMS, "kube-controller-manager", "kube-scheduler", "kubectl")

_MULTICALL = "kube"


@dataclass(frozen=True, slots=True)
class KubeBinaries:
    """A directory holding Kubernetes programs under their usual names."""

    directory: Path
    source: str
    """Where they came from, for people: e.g. `$PDSERVE_KUBE_BIN`."""

    def path(self, program: str) -> Path:
        """Path of one program; raises LocalError when the directory lacks it."""
        found = self.directory / program
        if not found.exists():
            raise LocalError(f"{self.directory} ({self.source}) has no {program}")
        return found


def kube(progress: Progress = quiet, programs: Iterable[str] = ALL_PROGRAMS) -> KubeBinaries:
    """The Kubernetes programs named; made if they are nowhere.

    Raises:
        LocalError: an environment variable names a place without them, or no way to make them
            worked; the message says what was tried.
    """
    wanted = tuple(programs)
    if (chosen := _kube_from_env(wanted)) is not None:
        return chosen
    cache = cache_dir()
    source = checkout()
    tried: list[str] = []
    if source is not None:
        recipe = kube_recipe(source / "hack" / "kube")
        target = cache / recipe.cache_name / "bin"
        if _has(target, wanted):
            return KubeBinaries(target, "cache")
        try:
            gobuild.build(recipe, cache, progress)
        except LocalError as error:
            tried.append(str(error))
            progress(f"{error}")
        else:
            return KubeBinaries(target, "built from Go modules")
    target = cache / f"kubernetes-{KUBERNETES_VERSION}-{platform.machine()}" / "bin"
    if _has(target, wanted):
        return KubeBinaries(target, "cache")
    try:
        download_kubernetes(target, KUBERNETES_VERSION, progress)
    except LocalError as error:
        tried.append(str(error))
        raise LocalError(
            "no Kubernetes control plane programs on this machine:\n"
            + "\n".join(f"- {line}" for line in tried)
            + f"\nInstall Go >= 1.26, or set {ENV_KUBE} to a folder with {', '.join(wanted)}."
        ) from error
    return KubeBinaries(target, "official release")


def helm(progress: Progress = quiet) -> Path:
    """The Helm 3 program; raises LocalError when there is none and none can be built."""
    return _single("helm", ENV_HELM, helm_recipe(), progress)


def prometheus(progress: Progress = quiet) -> Path:
    """The Prometheus server program; raises LocalError as `helm` does.

    Not looked for on PATH: distributions leave out Kubernetes discovery (Debian's does), without
    which it cannot find the pods.
    """
    root = checkout()
    recipe = prometheus_recipe(root / "hack" / "prometheus") if root else None
    return _single("prometheus", ENV_PROMETHEUS, recipe, progress, on_path=False)


def kind(progress: Progress = quiet) -> Path:
    """The kind program; raises LocalError when it can be neither found, built nor fetched."""
    return _single("kind", ENV_KIND, kind_recipe(), progress, release=_kind_release)


def kube_recipe(module: Path) -> Recipe:
    """How the multi-call Kubernetes binary is built from `hack/kube`."""
    version = "k8s.io/component-base/version"
    minor = KUBERNETES_VERSION.split(".")[1]
    return Recipe(
        name=_MULTICALL,
        version=KUBERNETES_VERSION,
        what="etcd, kube-apiserver, controller-manager, scheduler, kubectl",
        typical_seconds=260,
        module=module,
        package=".",
        ldflags=(
            f"-s -w -X {version}.gitVersion={KUBERNETES_VERSION}"
            f" -X {version}.gitMajor=1 -X {version}.gitMinor={minor}"
        ),
        links=ALL_PROGRAMS,
    )


def helm_recipe() -> Recipe:
    """How Helm is built, straight from its published module."""
    return _published(
        "helm",
        HELM_VERSION,
        "the chart installer",
        typical_seconds=60,
        package="helm.sh/helm/v3/cmd/helm",
        ldflags=f" -X helm.sh/helm/v3/internal/version.version={HELM_VERSION}",
    )


def kind_recipe() -> Recipe:
    """How kind is built, straight from its published module."""
    return _published(
        "kind",
        KIND_VERSION,
        "makes clusters of containers",
        typical_seconds=30,
        package="sigs.k8s.io/kind",
    )


def _published(
    name: str, version: str, what: str, *, typical_seconds: int, package: str, ldflags: str = ""
) -> Recipe:
    return Recipe(
        name=name,
        version=version,
        what=what,
        typical_seconds=typical_seconds,
        module=None,
        package=f"{package}@{version}",
        ldflags=f"-s -w{ldflags}",
    )


def prometheus_recipe(module: Path) -> Recipe:
    """How Prometheus is built from `hack/prometheus` (its own go.mod cannot be go-installed)."""
    return Recipe(
        name="prometheus",
        version=PROMETHEUS_VERSION,
        what="the metrics server the ratio loop reads",
        typical_seconds=110,
        module=module,
        package="github.com/prometheus/prometheus/cmd/prometheus",
        ldflags=f"-s -w -X github.com/prometheus/common/version.Version={PROMETHEUS_VERSION}",
        tags="remove_all_sd,enable_kubernetes_sd,netgo",
    )


def _kube_from_env(wanted: tuple[str, ...]) -> KubeBinaries | None:
    """Programs named by the environment.

    KUBEBUILDER_ASSETS (set by envtest users for other projects) is skipped when it lacks a wanted
    program, as envtest ships no scheduler; PDSERVE_KUBE_BIN is ours, so then it is a mistake.
    """
    if value := os.environ.get(ENV_KUBE):
        directory = Path(value).expanduser()
        if directory.is_file():
            directory = _links_to(directory)
        if missing := [p for p in wanted if not (directory / p).exists()]:
            raise LocalError(f"{ENV_KUBE}={value}: no {', '.join(missing)} there")
        return KubeBinaries(directory, f"${ENV_KUBE}")
    if value := os.environ.get(ENV_KUBEBUILDER):
        directory = Path(value).expanduser()
        if _has(directory, wanted):
            return KubeBinaries(directory, f"${ENV_KUBEBUILDER}")
    return None


def _links_to(multicall: Path) -> Path:
    """A cached folder of links that let a multi-call binary be called by its programs' names."""
    key = str(multicall.resolve()).strip("/").replace("/", "_")
    directory = cache_dir() / "links" / key
    directory.mkdir(parents=True, exist_ok=True)
    for program in ALL_PROGRAMS:
        link = directory / program
        if not link.exists():
            link.unlink(missing_ok=True)
            link.symlink_to(multicall.resolve())
    return directory


def _has(directory: Path, wanted: Iterable[str]) -> bool:
    return all((directory / program).exists() for program in wanted)


def _single(
    name: str,
    variable: str,
    recipe: Recipe | None,
    progress: Progress,
    *,
    on_path: bool = True,
    release: Callable[[Progress], Path] | None = None,
) -> Path:
    if value := os.environ.get(variable):
        chosen = Path(value).expanduser()
        if not os.access(chosen, os.X_OK):
            raise LocalError(f"{variable}={value}: not a program that can be run")
        return chosen
    if recipe is not None:
        cached = cache_dir() / recipe.cache_name / "bin" / name
        if cached.exists():
            return cached
    if on_path and (found := shutil.which(name)):
        return Path(found)
    if recipe is None:
        raise LocalError(f"no {name}: install it, or set {variable} to the program")
    tried: list[str] = []
    try:
        return gobuild.build(recipe, cache_dir(), progress) / name
    except LocalError as error:
        if release is None:
            raise _nowhere(name, variable, [str(error)]) from error
        tried.append(str(error))
        progress(str(error))
    try:
        return release(progress)
    except LocalError as error:
        raise _nowhere(name, variable, [*tried, str(error)]) from error


def _nowhere(name: str, variable: str, tried: list[str]) -> LocalError:
    failed = "\n".join(f"- {line}" for line in tried)
    return LocalError(
        f"no {name} on this machine, and it could not be made:\n{failed}\n"
        f"Install Go, or set {variable} to the {name} program of an official release."
    )


def _kind_release(progress: Progress) -> Path:
    target = cache_dir() / f"kind-{KIND_VERSION}-{platform.machine()}-release" / "kind"
    if not target.exists():
        download_kind(target, KIND_VERSION, progress)
    return target
