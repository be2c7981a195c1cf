"""Waits until the operator has written the address of an instance's leader, then ends.

It runs as an init container of each member but the leader: an engine of several nodes takes the
leader's address as an argument, which is known only when the leader's pod runs. The operator writes
it as an annotation; a volume of the pod shows it as a file. docs/decisions/048 gives the reasons.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from pathlib import Path

LOOK_SECONDS = 0.2
MAX_ADDRESS = 64


def leader_address(file: Path) -> str:
    """What the file says now; empty while the address is not known."""
    try:
        with file.open("rb") as source:
            return source.read(MAX_ADDRESS).decode("ascii", "replace").strip()
    except OSError:
        return ""


def main() -> int:
    """Wait; the file is the only argument. Returns the exit status."""
    # As process 1 of a container nothing else would end it before its time.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    if len(sys.argv) != 2:
        logging.error("one argument is required: the file with the leader's address")
        return 2
    file = Path(sys.argv[1])
    logging.info("waiting for the leader's address in %s", file)
    while not (address := leader_address(file)):
        time.sleep(LOOK_SECONDS)
    logging.info("the leader is at %s", address)
    return 0


if __name__ == "__main__":
    sys.exit(main())
