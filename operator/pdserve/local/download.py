"""Official Kubernetes, etcd and kind releases, for machines without Go.

Every file is checked against the SHA-256 that the release publishes beside it before anything
of it is used.
"""

from __future__ import annotations

import hashlib
import io
import os
import platform
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
from pathlib import Path

from pdserve.local.errors import LocalError, Progress

ETCD_VERSION = "v3.6.8"
KUBERNETES_URL = "https://dl.k8s.io"
ETCD_URL = "https://github.com/etcd-io/etcd/releases/download"
KIND_URL = "https://github.com/kubernetes-sigs/kind/releases/download"
PROGRAMS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_TIMEOUT_SECONDS = 60.0


def download_kubernetes(
    target: Path,
    version: str,
    progress: Progress,
    kubernetes_url: str = KUBERNETES_URL,
    etcd_url: str = ETCD_URL,
) -> None:
    """Fill `target` with etcd and the Kubernetes programs of `version`.

    Raises:
        LocalError: this machine's architecture has no release, a file cannot be fetched, or a
            checksum does not match. `target` is then left as it was.
    """
    arch = _architecture()
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".download-", dir=target.parent))
    try:
        for program in PROGRAMS:
            url = f"{kubernetes_url}/{version}/bin/linux/{arch}/{program}"
            progress(f"downloading {url}")
            expected = _get(f"{url}.sha256").decode("ascii", "replace").split()[:1]
            _install(scratch / program, _checked(url, _get(url), expected))
        _etcd(scratch, arch, etcd_url, progress)
        shutil.rmtree(target, ignore_errors=True)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def download_kind(target: Path, version: str, progress: Progress, base: str = KIND_URL) -> None:
    """Put the kind program of `version` at `target`; raises LocalError as above."""
    url = f"{base}/{version}/kind-linux-{_architecture()}"
    progress(f"downloading {url}")
    expected = _get(f"{url}.sha256sum").decode("ascii", "replace").split()[:1]
    content = _checked(url, _get(url), expected)
    target.parent.mkdir(parents=True, exist_ok=True)
    fresh = target.with_name(f".{target.name}-{os.getpid()}")
    _install(fresh, content)
    fresh.rename(target)


def _architecture() -> str:
    machine = platform.machine()
    if machine not in _ARCHITECTURES:
        raise LocalError(f"no official Kubernetes release for {machine!r}")
    return _ARCHITECTURES[machine]


def _etcd(scratch: Path, arch: str, base: str, progress: Progress) -> None:
    name = f"etcd-{ETCD_VERSION}-linux-{arch}.tar.gz"
    url = f"{base}/{ETCD_VERSION}/{name}"
    progress(f"downloading {url}")
    sums = _get(f"{base}/{ETCD_VERSION}/SHA256SUMS").decode("ascii", "replace").splitlines()
    expected = [line.split()[0] for line in sums if line.endswith(name)]
    archive = _checked(url, _get(url), expected)
    with tarfile.open(fileobj=io.BytesIO(archive), mode="r:gz") as tar:
        member = tar.extractfile(f"{name.removesuffix('.tar.gz')}/etcd")
        if member is None:
            raise LocalError(f"{url}: no etcd program in the archive")
        _install(scratch / "etcd", member.read())


def _checked(url: str, content: bytes, expected: list[str]) -> bytes:
    actual = hashlib.sha256(content).hexdigest()
    if expected != [actual]:
        published = expected[0] if expected else "none published"
        raise LocalError(f"{url}: SHA-256 is {actual}, the release says {published}")
    return content


def _install(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    os.chmod(path, 0o755)  # noqa: S103, PTH101 - a program, to be run by whoever may read it


def _get(url: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as reply:  # noqa: S310 - https, or a test's loopback server
            content: bytes = reply.read()
            return content
    except (urllib.error.URLError, OSError) as error:
        raise LocalError(f"cannot download {url}: {error}") from error
