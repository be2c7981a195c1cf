"""A mirror of official releases on loopback, with a lock file of its own.

`python -m tests.support.release_mirror COMMAND...` runs a command as on a machine that has no
programs and reaches releases: they are this machine's own programs, and the cache is empty. No
release is fetched from anywhere else. It says then how long the command took and what it left.
"""

from __future__ import annotations

import hashlib
import http.server
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from localcluster import binaries
from localcluster.binaries import ENV_KIND, ENV_KUBE, ENV_KUBEBUILDER
from localcluster.download import ENV_MIRROR
from localcluster.releases import ENV_LOCK, Asset, Release


def all_releases() -> tuple[Release, ...]:
    """Those of this machine's architecture."""
    return (
        binaries.kube_release(),
        binaries.helm_release(),
        binaries.prometheus_release(),
        binaries.kind_release(),
    )


class Mirror:
    """Files by address, served under `url`; `asked` are the paths of all requests so far."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = root / "lock.json"
        self.asked: list[str] = []
        self.url = ""
        self._pins: dict[str, str] = {}

    def file(self, url: str) -> Path:
        """Where the file of an address lies."""
        return self.root / url.partition("://")[2]

    def put(self, asset: Asset, program: bytes, *, pin: bool = True) -> None:
        """Publish one file that is or contains `program`, and pin it."""
        content = _packed(asset.member, program) if asset.member else program
        path = self.file(asset.url)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        sums = self.file(asset.sums)
        known = sums.read_text() if sums.exists() else ""
        sums.write_text(f"{known}{digest}  {path.name}\n")
        if pin:
            self._pins[asset.url] = digest
        self.lock.write_text(json.dumps(self._pins))

    def environment(self) -> dict[str, str]:
        """What makes pdserve use this mirror and this lock file."""
        return {ENV_MIRROR: self.url, ENV_LOCK: str(self.lock)}


def _packed(member: str, content: bytes) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", compresslevel=1) as tar:
        info = tarfile.TarInfo(member)
        info.size = len(content)
        tar.addfile(info, io.BytesIO(content))
    return packed.getvalue()


@contextmanager
def mirror(root: Path) -> Iterator[Mirror]:
    """An empty mirror that is served until the end of the block."""
    root.mkdir(parents=True, exist_ok=True)
    made = Mirror(root)
    made.lock.write_text("{}")

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(root))  # type: ignore[arg-type]

        def log_request(self, *args: object) -> None:
            made.asked.append(self.path)

        def log_message(self, *args: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def of_this_machine() -> Mapping[str, Path]:
    """The programs that releases contain, as this machine has them."""
    kube = binaries.kube()
    return {name: kube.path(name) for name in binaries.ALL_PROGRAMS} | {
        "helm": binaries.helm(),
        "prometheus": binaries.prometheus(),
    }


def main(command: list[str]) -> int:
    """Run `command` beside a mirror of this machine's programs; its exit status."""
    have = of_this_machine()
    with tempfile.TemporaryDirectory() as scratch, mirror(Path(scratch) / "mirror") as made:
        for release in all_releases():
            for asset in release.assets:
                if asset.program in have:
                    made.put(asset, have[asset.program].read_bytes())
        cache = Path(scratch) / "cache"
        named = (ENV_KUBE, ENV_KUBEBUILDER, binaries.ENV_HELM, binaries.ENV_PROMETHEUS, ENV_KIND)
        kept = {name: value for name, value in os.environ.items() if name not in named}
        env = {**kept, **made.environment(), "PDSERVE_CACHE": str(cache)}
        env["PATH"] = _without(env["PATH"], "helm")
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        env["no_proxy"] = env["NO_PROXY"] = f"{direct},127.0.0.1".lstrip(",")
        began = time.monotonic()
        done = subprocess.run(command, env=env, check=False)
        taken = time.monotonic() - began
        files = (f.lstat() for f in cache.rglob("*") if f.is_file() and not f.is_symlink())
        size = sum({f.st_ino: f.st_size for f in files}.values())
        print(
            f"release_mirror: exit {done.returncode} in {taken:.0f} s; "
            f"{len(made.asked)} files downloaded, {size / 1e6:.0f} MB left in the cache",
            file=sys.stderr,
        )
        return done.returncode


def _without(path: str, program: str) -> str:
    folders = path.split(os.pathsep)
    return os.pathsep.join(f for f in folders if not (Path(f) / program).exists())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
