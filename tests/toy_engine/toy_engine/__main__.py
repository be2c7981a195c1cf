"""The program: renames what the Reference engine is about to read, then runs it."""

import sys

from pdserve.wire import calls, metrics
from toy_engine import toy_header, toy_path, toy_series


def rename() -> None:
    """Give paths, headers and series their toy names, in this process."""
    for name, value in list(vars(calls).items()):
        if name.startswith("PATH_"):
            setattr(calls, name, toy_path(value))
        elif name.startswith("HEADER_"):
            setattr(calls, name, toy_header(value))
    for name, value in list(vars(metrics).items()):
        if isinstance(value, str) and value.startswith("pdserve_engine_"):
            setattr(metrics, name, toy_series(value))


if __name__ == "__main__":
    rename()
    from pdserve.refengine.__main__ import main

    sys.exit(main())
