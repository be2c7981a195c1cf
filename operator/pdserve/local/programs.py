"""`pdserve local programs`: find or get everything that local clusters run.

Imports nothing but the standard library, so that `make` can run it (`python -m
pdserve.local.programs`) while the virtual environment is still being made.
"""

from __future__ import annotations

import sys

from pdserve.local import binaries
from pdserve.local.errors import LocalError


def main() -> int:
    """Print where each program is, progress on standard error; 1 if one is nowhere."""

    def progress(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    try:
        finder = binaries.Finder(progress)
        found = finder.kube()
        lines = [
            f"kubernetes  {found.directory} ({found.source})",
            f"helm        {finder.helm()}",
            f"prometheus  {finder.prometheus()}",
        ]
    except LocalError as error:
        sys.stderr.write(f"pdserve local: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
