"""Functions of a running process: which exist, which are called, and what caches hold of them."""

from __future__ import annotations

import functools
import gc
import sys
import types
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

Functions = dict[tuple[str, str], list[types.FunctionType]]
"""By file and qualified name."""


class Calls:
    """Which functions of the sources run between `start` and `stop`, as `path:name`."""

    def __init__(self, root: Path, paths: Iterable[str]) -> None:
        self._known = {str(root / path): path for path in paths}
        self._codes: set[types.CodeType] = set()

    def start(self) -> None:
        """Note calls of this thread from now on, and forget those of before."""
        self._codes = set()
        sys.settrace(self._note)

    def stop(self) -> set[str]:
        """Note no more; those noted. A nested function counts as the outermost one around it."""
        sys.settrace(None)
        return {
            f"{self._known[c.co_filename]}:{c.co_qualname.partition('.<locals>')[0]}"
            for c in self._codes
            if c.co_filename in self._known
        }

    def _note(self, frame: types.FrameType, _event: str, _arg: object) -> None:
        """Called where a function begins; nothing inside it is traced."""
        self._codes.add(frame.f_code)


def live_functions() -> Functions:
    """Function objects that exist and are not frozen."""
    found: Functions = {}
    for one in gc.get_objects():
        if isinstance(one, types.FunctionType):
            code = one.__code__
            found.setdefault((code.co_filename, code.co_qualname), []).append(one)
    return found


def live_caches() -> list[Any]:
    """Functions that exist under `functools.cache` or `lru_cache`."""
    return [one for one in gc.get_objects() if isinstance(one, functools._lru_cache_wrapper)]


def codes_of(code: types.CodeType) -> Iterator[types.CodeType]:
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield const
            yield from codes_of(const)
