"""Finds or makes the programs a local cluster runs: Kubernetes, Helm, Prometheus, kind.

Order, first that works: 1. an environment variable naming them; 2. the cache; 3. `PATH` (Helm
and kind only: any version will do); 4. the official release, if the lock file pins it and its host
answers (`releases`); 5. a build from Go modules (`gobuild`). A program got by 4 or 5 is kept in
the cache under a name that changes with its version and recipe, so it is got once per machine.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from localcluster import gobuild, releases
from localcluster.errors import LocalError, Progress, quiet
from localcluster.gobuild import Builds, Recipe
from localcluster.paths import cache_dir, checkout
from localcluster.releases import Release, Releases

KUBERNETES_VERSION = "v1.36.3"
ETCD_VERSION = "v3.6.8"
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
        """Path of one program.

        Raises:
            LocalError: the directory lacks it.
        """
        found = self.directory / program
        if not found.exists():
            raise LocalError(f"{self.directory} ({self.source}) has no {program}")
        return found


class Finder:
    """Finds the programs of one run, in a `with` block.

    What is learnt or made for one program serves the others: a host that failed is not asked again,
    and builds share what they compiled, which is removed when the block ends.

    Args:
        progress: told what takes long, and why a release is not used.
    """

    def __init__(self, progress: Progress = quiet) -> None:
        self._progress = progress
        self._releases: Releases | None = None
        self._builds: Builds | None = None

    def __enter__(self) -> Finder:
        return self

    def __exit__(self, *_: object) -> None:
        if self._builds is not None:
            self._builds.close()

    def kube(self, programs: Iterable[str] = ALL_PROGRAMS) -> KubeBinaries:
        """The Kubernetes programs named; made if they are nowhere.

        Raises:
            LocalError: an environment variable names a place without them, or no way to make them
                worked; the message says what was tried.
        """
        wanted = tuple(programs)
        if (chosen := _kube_from_env(wanted)) is not None:
            return chosen
        module = go_module()
        recipe = kube_recipe(module) if module else None
        try:
            found, source = self._got(recipe, kube_release(), wanted)
        except _NowhereError as error:
            raise LocalError(
                f"no Kubernetes control plane programs on this machine:\n{error}\n"
                f"Install Go >= 1.26, or set {ENV_KUBE} to a folder with {', '.join(wanted)}."
            ) from error
        return KubeBinaries(found, source)

    def helm(self) -> Path:
        """The Helm 3 program: found, fetched or built.

        Raises:
            LocalError: there is none and none can be made.
        """
        module = go_module()
        recipe = helm_recipe(module) if module else None
        return self._single("helm", ENV_HELM, recipe, helm_release())

    def prometheus(self) -> Path:
        """The Prometheus server program: found, fetched or built.

        Not looked for on PATH: distributions leave out Kubernetes discovery (Debian's does),
        without which it cannot find the pods.

        Raises:
            LocalError: there is none and none can be made.
        """
        module = go_module()
        recipe = prometheus_recipe(module) if module else None
        return self._single(
            "prometheus", ENV_PROMETHEUS, recipe, prometheus_release(), on_path=False
        )

    def kind(self) -> Path:
        """The kind program: found, fetched or built.

        Raises:
            LocalError: there is none and none can be made.
        """
        return self._single("kind", ENV_KIND, kind_recipe(), kind_release())

    def _single(
        self,
        name: str,
        variable: str,
        recipe: Recipe | None,
        release: Release,
        *,
        on_path: bool = True,
    ) -> Path:
        if value := os.environ.get(variable):
            chosen = Path(value).expanduser()
            if not os.access(chosen, os.X_OK):
                raise LocalError(f"{variable}={value}: not a program that can be run")
            return chosen
        try:
            directory, _ = self._got(recipe, release, (name,), on_path=on_path)
        except _NowhereError as error:
            raise LocalError(
                f"no {name} on this machine, and it could not be made:\n{error}\n"
                f"Install Go, or set {variable} to the {name} program of an official release."
            ) from error
        return directory / name

    def _got(
        self,
        recipe: Recipe | None,
        release: Release,
        wanted: tuple[str, ...],
        *,
        on_path: bool = False,
    ) -> tuple[Path, str]:
        """Folder with the programs `wanted`, and where they came from; steps 2 to 5 above."""
        cache = cache_dir()
        official = self._official()
        if recipe is not None and (built := gobuild.cached(recipe, cache, wanted)):
            return built, "cache"
        if fetched := official.cached(release, cache):
            return fetched, "cache"
        if on_path and (found := shutil.which(wanted[0])):
            return Path(found).parent, "PATH"
        ways: list[tuple[str, Callable[[], Path]]] = [
            ("official release", lambda: official.fetch(release, cache, self._progress))
        ]
        if recipe is not None:
            build = recipe
            ways.append(("built from Go modules", lambda: self._building(cache).build(build)))
        tried: list[str] = []
        for source, way in ways:
            try:
                return way(), source
            except LocalError as error:
                self._progress(str(error))
                tried.append(f"- {error}")
        raise _NowhereError("\n".join(tried))

    def _building(self, cache: Path) -> Builds:
        if self._builds is None:
            self._builds = Builds(cache, self._progress)
        return self._builds

    def _official(self) -> Releases:
        if self._releases is None:
            self._releases = Releases()
        return self._releases


class _NowhereError(LocalError):
    """No way to get a program worked; the message lists what was tried."""


def kube(progress: Progress = quiet, programs: Iterable[str] = ALL_PROGRAMS) -> KubeBinaries:
    """As `Finder.kube`, in a run of its own."""
    with Finder(progress) as finder:
        return finder.kube(programs)


def helm(progress: Progress = quiet) -> Path:
    """As `Finder.helm`, in a run of its own."""
    with Finder(progress) as finder:
        return finder.helm()


def prometheus(progress: Progress = quiet) -> Path:
    """As `Finder.prometheus`, in a run of its own."""
    with Finder(progress) as finder:
        return finder.prometheus()


def kind(progress: Progress = quiet) -> Path:
    """As `Finder.kind`, in a run of its own."""
    with Finder(progress) as finder:
        return finder.kind()


def kube_release(arch: str | None = None) -> Release:
    """The official release of Kubernetes and etcd; `arch` as releases call it, default: ours."""
    return releases.kubernetes(KUBERNETES_VERSION, ETCD_VERSION, arch or releases.architecture())


def helm_release(arch: str | None = None) -> Release:
    """The official release of Helm."""
    return releases.helm(HELM_VERSION, arch or releases.architecture())


def prometheus_release(arch: str | None = None) -> Release:
    """The official release of Prometheus."""
    return releases.prometheus(prometheus_tag(), arch or releases.architecture())


def kind_release(arch: str | None = None) -> Release:
    """The official release of kind."""
    return releases.kind(KIND_VERSION, arch or releases.architecture())


def prometheus_tag(module: str = PROMETHEUS_VERSION) -> str:
    """Version of the Prometheus server: its Go module calls v3.15.0 v0.315.0."""
    _, minor, patch = module.split(".")
    return f"v{int(minor) // 100}.{int(minor) % 100}.{patch}"


def go_module() -> Path | None:
    """The Go module that all programs but kind are built from; None without a checkout."""
    root = checkout()
    return root / "hack" / "programs" if root else None


def kube_recipe(module: Path) -> Recipe:
    """How the multi-call Kubernetes binary is built; `module` is `go_module()`."""
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


def helm_recipe(module: Path) -> Recipe:
    """How Helm is built, after Kubernetes and with its libraries."""
    return _beside_kubernetes(
        module,
        name="helm",
        version=HELM_VERSION,
        what="the chart installer",
        package="helm.sh/helm/v3/cmd/helm",
        variable="helm.sh/helm/v3/internal/version.version",
    )


def prometheus_recipe(module: Path) -> Recipe:
    """How Prometheus is built, after Kubernetes and with its libraries."""
    return _beside_kubernetes(
        module,
        name="prometheus",
        version=PROMETHEUS_VERSION,
        what="the metrics server the ratio loop reads",
        package="github.com/prometheus/prometheus/cmd/prometheus",
        variable="github.com/prometheus/common/version.Version",
        tags="remove_all_sd,enable_kubernetes_sd",
    )


def _beside_kubernetes(
    module: Path, *, name: str, version: str, what: str, package: str, variable: str, tags: str = ""
) -> Recipe:
    """A program of the one Go module, whose version stands in `variable`."""
    return Recipe(
        name=name,
        version=version,
        what=what,
        typical_seconds=20,
        module=module,
        package=package,
        ldflags=f"-s -w -X {variable}={version}",
        tags=tags,
    )


def kind_recipe() -> Recipe:
    """How kind is built, straight from its published module."""
    return Recipe(
        name="kind",
        version=KIND_VERSION,
        what="makes clusters of containers",
        typical_seconds=30,
        module=None,
        package=f"sigs.k8s.io/kind@{KIND_VERSION}",
        ldflags="-s -w",
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
