"""Official releases of the programs: which files they are, and which of them are pinned.

Only a file whose SHA-256 is in the lock file (`releases.json`, written by `hack/pin.py`) is ever
used. The lock file's keys are addresses, which contain the version: a release of a new version
cannot be used until it is pinned. `download` fetches the files.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localcluster import store
from localcluster.download import Downloads
from localcluster.errors import LocalError, Progress

LOCK = Path(__file__).with_name("releases.json")
ENV_LOCK = "PDSERVE_RELEASE_LOCK"
"""Another lock file."""

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
"""`platform.machine()` -> how releases call it."""


@dataclass(frozen=True, slots=True)
class Asset:
    """One file of a release. `sums` is where its publisher says the SHA-256 of it."""

    url: str
    sums: str
    program: str
    member: str = ""
    """Path of the program in the archive that the file is; empty: the file is the program."""


@dataclass(frozen=True, slots=True)
class Release:
    """The files that make up one entry of the cache."""

    name: str
    version: str
    assets: tuple[Asset, ...]

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs in it."""
        return tuple(asset.program for asset in self.assets)


def kubernetes(version: str, etcd: str, arch: str) -> Release:
    """The Kubernetes programs and etcd: that first, as it is small and its host another."""
    base = f"https://dl.k8s.io/{version}/bin/linux/{arch}"
    stem = f"etcd-{etcd}-linux-{arch}"
    from_etcd = f"https://github.com/etcd-io/etcd/releases/download/{etcd}"
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
    return Release(
        "kubernetes",
        version,
        (
            Asset(f"{from_etcd}/{stem}.tar.gz", f"{from_etcd}/SHA256SUMS", "etcd", f"{stem}/etcd"),
            *(Asset(f"{base}/{name}", f"{base}/{name}.sha256", name) for name in names),
        ),
    )


def helm(version: str, arch: str) -> Release:
    """The helm program."""
    url = f"https://get.helm.sh/helm-{version}-linux-{arch}.tar.gz"
    return Release("helm", version, (Asset(url, f"{url}.sha256sum", "helm", f"linux-{arch}/helm"),))


def prometheus(version: str, arch: str) -> Release:
    """Prometheus. `version` is the server's, like v3.15.0, not that of its Go module."""
    stem = f"prometheus-{version.removeprefix('v')}.linux-{arch}"
    base = f"https://github.com/prometheus/prometheus/releases/download/{version}"
    asset = Asset(
        f"{base}/{stem}.tar.gz", f"{base}/sha256sums.txt", "prometheus", f"{stem}/prometheus"
    )
    return Release("prometheus", version, (asset,))


def kind(version: str, arch: str) -> Release:
    """The kind program."""
    base = f"https://github.com/kubernetes-sigs/kind/releases/download/{version}"
    url = f"{base}/kind-linux-{arch}"
    return Release("kind", version, (Asset(url, f"{url}.sha256sum", "kind"),))


def architecture() -> str:
    """This machine's, as releases call it; an unknown one is called as the kernel does."""
    return ARCHITECTURES.get(platform.machine(), platform.machine())


class Releases:
    """Releases within one run, and the sums they are held to.

    Args:
        pins: address of a file -> its SHA-256 in hexadecimal; default: the lock file.
        downloads: how files are fetched.

    Raises:
        LocalError: the lock file cannot be read.
    """

    def __init__(
        self, pins: Mapping[str, str] | None = None, downloads: Downloads | None = None
    ) -> None:
        self._pins = read_pins() if pins is None else pins
        self._downloads = downloads or Downloads()

    def cached(self, release: Release, cache: Path) -> Path | None:
        """Folder with its programs, if this release as it is pinned was fetched before."""
        if self._unpinned(release):
            return None
        name = self._folder(release)
        return cache / name / "bin" if store.holds(cache, name, release.programs) else None

    def fetch(self, release: Release, cache: Path, progress: Progress) -> Path:
        """Folder with its programs, fetched unless it is in the cache.

        Raises:
            LocalError: it is not pinned, a host does not answer, or a file is not the pinned one.
        """
        if unpinned := self._unpinned(release):
            raise LocalError(
                f"the official release of {release.name} {release.version} is not used: no SHA-256 "
                f"is pinned for {', '.join(unpinned)} on {architecture()} (hack/pin.py pins them)"
            )

        def fill(scratch: Path) -> None:
            for asset in release.assets:
                file = scratch / "download"
                self._downloads.fetch(asset.url, self._pins[asset.url], file, progress)
                _install(asset, file, scratch / "bin" / asset.program)

        return store.make(cache, self._folder(release), release.programs, fill, progress)

    def _unpinned(self, release: Release) -> list[str]:
        return [asset.program for asset in release.assets if asset.url not in self._pins]

    def _folder(self, release: Release) -> str:
        """Name in the cache: another one whenever another file is pinned."""
        pins = "".join(self._pins[asset.url] for asset in release.assets)
        digest = hashlib.sha256(pins.encode()).hexdigest()[:12]
        return f"{release.name}-{release.version}-{platform.machine()}-release-{digest}"


def read_pins(lock: Path | None = None) -> dict[str, str]:
    """What a lock file says; default: that of $PDSERVE_RELEASE_LOCK, else the package's.

    Raises:
        LocalError: it cannot be read, or is no map from addresses to SHA-256 sums.
    """
    path = lock or Path(os.environ.get(ENV_LOCK) or LOCK).expanduser()
    try:
        pins = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise LocalError(f"{path}: {error}") from error
    if not isinstance(pins, dict) or not all(_is_sum(value) for value in pins.values()):
        raise LocalError(f"{path}: not a map from addresses to SHA-256 sums in hexadecimal")
    return pins


def _is_sum(value: object) -> bool:
    return isinstance(value, str) and len(value) == 64 and set(value) <= set("0123456789abcdef")


def _install(asset: Asset, file: Path, program: Path) -> None:
    if asset.member:
        with tarfile.open(file, mode="r:gz") as tar:
            try:
                content = tar.extractfile(asset.member)
            except KeyError:
                content = None
            if content is None:
                raise LocalError(f"{asset.url}: no {asset.member} in the archive")
            with content, program.open("wb") as out:
                shutil.copyfileobj(content, out)
        file.unlink()
    else:
        file.rename(program)
    os.chmod(program, 0o755)  # noqa: S103, PTH101 - a program, to be run by every user who may read it
