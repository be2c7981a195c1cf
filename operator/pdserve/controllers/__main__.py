"""`python -m pdserve.controllers`, also installed as `pdserve-operator`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys


def main() -> int:
    """Run the operator; the exit status."""
    # Until `app` takes it over: process 1 of a container ignores signals without a handler, and
    # the imports below take a second, in which a deleted pod would wait out its whole grace.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    from pdserve.controllers.app import run
    from pdserve.controllers.logs import set_up
    from pdserve.controllers.options import parse_options
    from pdserve.kube.connect import ConnectError

    options = parse_options()
    set_up(options.log_format, options.log_level)
    try:
        asyncio.run(run(options))
    except ConnectError as error:
        sys.stderr.write(f"pdserve-operator: {error}\n")
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
