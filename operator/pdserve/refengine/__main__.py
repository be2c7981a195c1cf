"""Process entry: one BLAS thread before numpy is imported, then the server.

Exact mode needs one BLAS thread (more change the summation order), and a dozen instances on one
machine must not fight for cores. The environment must be set before the first numpy import,
which is why the other modules are imported inside `main`.
"""

from __future__ import annotations

import logging
import os
import signal
import sys

_ONE_THREAD = (
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "RAYON_NUM_THREADS",
)


def main() -> int:
    """Run one engine; returns the exit status."""
    # Until the server takes it over: as process 1 of a container nothing would end this process
    # but SIGKILL, and a pod deleted while it starts would hold its devices for all of its grace.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    for name in _ONE_THREAD:
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    import uvloop

    from pdserve.refengine.config import parse

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    config = parse()
    from pdserve.refengine.kv.kv_transport import TransportError
    from pdserve.refengine.model.loader import load_model
    from pdserve.refengine.model.selftest import NotExactError
    from pdserve.refengine.model.tensors import WeightsError
    from pdserve.refengine.runtime.pacing import ProfileError
    from pdserve.refengine.server import serve

    try:
        model = load_model(config.weights, config.arithmetic, config.members, config.member)
        uvloop.run(serve(config, model))
    except (WeightsError, NotExactError, ProfileError, TransportError, OSError) as error:
        logging.getLogger("pdserve.refengine").error("%s", error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
