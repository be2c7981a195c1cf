"""`compiled`: numba's `njit` where numba is installed, else the function itself.

The compiled code is kept between processes, in a folder named after the kernel's own sources, so
that a change of one function is never met by older code of another.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

F = TypeVar("F", bound=Callable[..., object])

WITHOUT_NUMBA = "PDSERVE_SIM_PURE"
"""Environment variable: set, the kernel runs as Python although numba is installed."""


def _sources() -> str:
    """Digest of what is compiled."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _jit() -> Callable[[F], F] | None:
    if os.environ.get(WITHOUT_NUMBA):
        return None
    try:
        import numba
    except ImportError:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    numba.config.CACHE_DIR = str(cache / "pdserve" / f"sim-{_sources()}")
    jit: Callable[[F], F] = numba.njit(cache=True, error_model="numpy")
    return jit


_JIT = _jit()
COMPILED = _JIT is not None
"""Whether functions run as machine code, on numpy arrays."""


def compiled(function: F) -> F:
    """The function as machine code, or unchanged."""
    return function if _JIT is None else _JIT(function)
