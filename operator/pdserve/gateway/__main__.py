"""`python -m pdserve.gateway`, also installed as `pdserve-gateway`."""

from __future__ import annotations

import os
import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """Run one gateway until SIGTERM or SIGINT; returns the exit status."""
    # Until `process` takes it over: process 1 of a container ignores signals without a handler,
    # and a pod deleted while it starts would wait out its whole grace.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from pdserve.gateway.process import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
