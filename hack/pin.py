"""Writes the SHA-256 of every official release that local clusters may use into the lock file.

Run it where the network has the releases, after a change of versions in
`operator/localcluster/binaries.py`, and look at the difference before it is committed. Sums are
those that each publisher names beside the release. What cannot be reached keeps its entry, if it
had one; entries of files that are no longer wanted go. Exit status 1: some file has no entry.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "operator"))

from localcluster import binaries, releases
from localcluster.download import Downloads
from localcluster.errors import LocalError
from localcluster.releases import ARCHITECTURES, Asset


def wanted() -> Iterator[Asset]:
    """Every file that some machine may download."""
    for arch in sorted(ARCHITECTURES.values()):
        for release in (
            binaries.kube_release(arch),
            binaries.helm_release(arch),
            binaries.prometheus_release(arch),
            binaries.kind_release(arch),
        ):
            yield from release.assets


def pinned(known: Mapping[str, str], downloads: Downloads) -> dict[str, str]:
    """The lock file's new content; says on standard error what could not be reached."""
    pins = {}
    for asset in wanted():
        try:
            pins[asset.url] = published(asset, downloads.text(asset.sums))
        except LocalError as error:
            print(f"pin: {error}", file=sys.stderr)
            if asset.url in known:
                pins[asset.url] = known[asset.url]
    return pins


def published(asset: Asset, text: str) -> str:
    """The sum of one file in its publisher's list: `SUM  NAME` lines, or one sum alone.

    Raises:
        LocalError: the list has none.
    """
    name = asset.url.rpartition("/")[2]
    for line in text.splitlines():
        words = line.split()
        if words and (len(words) == 1 or words[1].removeprefix("*") == name):
            return words[0].lower()
    raise LocalError(f"{asset.sums} has no sum of {name}")


def main() -> int:
    """Write the lock file; 1 if a file has no entry."""
    try:
        pins = pinned(releases.read_pins(releases.LOCK), Downloads())
    except LocalError as error:
        print(f"pin: {error}", file=sys.stderr)
        return 1
    releases.LOCK.write_text(json.dumps(pins, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    total = len(list(wanted()))
    print(f"{releases.LOCK.name}: {len(pins)} of {total} files are pinned")
    return 0 if len(pins) == total else 1


if __name__ == "__main__":
    sys.exit(main())
