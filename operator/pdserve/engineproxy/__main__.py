"""`python -m pdserve.engineproxy`, also installed as `pdserve-engine-proxy`."""

from __future__ import annotations

import logging
import os
import signal
import sys


def main(argv: list[str] | None = None) -> int:
    """Run one proxy until SIGTERM or SIGINT; returns the exit status."""
    # Process 1 of a container ignores signals without a handler.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    import uvloop

    from pdserve.engineproxy.proxy_config import parse
    from pdserve.engineproxy.server import serve

    config = parse(argv)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr
    )
    try:
        uvloop.run(serve(config))
    except OSError as error:
        logging.getLogger("pdserve.engineproxy").error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
