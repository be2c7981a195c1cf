"""`pdserve local programs`: find or get everything that local clusters run.

Imports nothing but the standard library, so that `make` can run it (`python -m
localcluster.programs`) while the virtual environment is still being made.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from localcluster import binaries
from localcluster.errors import LocalError

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What asks for an end. `make` runs this program in the background, with SIGINT ignored."""


@contextmanager
def ending_orderly() -> Iterator[None]:
    """The first of SIGNALS ends the block by SystemExit; later ones do not disturb its end."""

    def end(number: int, _: object) -> None:
        for other in SIGNALS:
            signal.signal(other, signal.SIG_IGN)
        sys.exit(128 + number)

    before = {number: signal.signal(number, end) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def main(*, with_kind: bool = False) -> int:
    """Print where each program is, progress on standard error; 1 if one is nowhere.

    kind only `with_kind`: process nodes do without.
    """

    def progress(line: str) -> None:
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()

    try:
        with ending_orderly(), binaries.Finder(progress) as finder:
            found = finder.kube()
            lines = [
                f"kubernetes  {found.directory} ({found.source})",
                f"helm        {finder.helm()}",
                f"prometheus  {finder.prometheus()}",
            ]
            if with_kind:
                lines.append(f"kind        {finder.kind()}")
    except LocalError as error:
        sys.stderr.write(f"pdserve local: {error}\n")
        return 1
    sys.stdout.write("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(with_kind="--kind" in sys.argv[1:]))
