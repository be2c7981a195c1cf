"""Which engine types there are, and the faces of each; a face is loaded when it is first asked for.

A type is announced by an entry point of the group `pdserve.engines` whose name is the type and
whose value is its package:

    [project.entry-points."pdserve.engines"]
    MyEngine = "my_package.my_engine"

The folders of this package are types too, announced or not: an image or a source tree may have no
metadata of distributions. They win over announcements of the same name. A type that cannot be
loaded, whatever its code raises, is an error for those who ask for it alone; it is
logged once. What was found stays for the life of the process. `docs/engines.md` shows how to add
a type, and `testing` checks one.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import metadata
from typing import TypeVar

from pdserve import engines
from pdserve.engines.control import EngineControl
from pdserve.engines.flow import EngineFlow
from pdserve.engines.pod_parts import EnginePod
from pdserve.engines.series import EngineSeries

logger = logging.getLogger(__name__)

GROUP = "pdserve.engines"
TYPE_NAME = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,62}")
"""As the API has it for `spec.engine.type`."""

T = TypeVar("T")


class EngineTypeError(Exception):
    """An engine type cannot be used here; the message says why."""


class UnknownEngineError(EngineTypeError):
    """There is no such type here; the message names the known ones."""


class BrokenEngineError(EngineTypeError):
    """There is such a type, and its code cannot be used."""


def known() -> tuple[str, ...]:
    """All types that were found, in order of their names; some may turn out broken."""
    return tuple(sorted(_packages()))


def flow(type_name: str) -> EngineFlow:
    """The request path of a type.

    Raises:
        EngineTypeError: the type is unknown or cannot be loaded.
    """
    return _face(type_name, "flow", "FLOW", EngineFlow)  # type: ignore[type-abstract]  # a name only


def pod(type_name: str) -> EnginePod:
    """What a type adds to pods.

    Raises:
        EngineTypeError: the type is unknown or cannot be loaded.
    """
    return _face(type_name, "pod", "POD", EnginePod)  # type: ignore[type-abstract]  # a name only


def control(type_name: str) -> EngineControl:
    """How instances of a type are controlled.

    Raises:
        EngineTypeError: the type is unknown or cannot be loaded.
    """
    return _face(type_name, "control", "CONTROL", EngineControl)  # type: ignore[type-abstract]  # a name only


def metrics(type_name: str) -> EngineSeries:
    """Names of a type's series.

    Raises:
        EngineTypeError: the type is unknown or cannot be loaded.
    """
    return _face(type_name, "metrics", "METRICS", EngineSeries)


def series() -> Mapping[str, tuple[str, ...]]:
    """Names of series by quantity, of all types that can be used, each name once."""
    found: dict[str, dict[str, None]] = {}
    for type_name in known():
        try:
            names = metrics(type_name).names
        except EngineTypeError:
            continue  # said when it was loaded
        for quantity, wanted in names.items():
            found.setdefault(quantity, {}).update(dict.fromkeys(wanted))
    return {quantity: tuple(names) for quantity, names in found.items()}


def forget() -> None:
    """Look again for types, for tests that add one."""
    _packages.cache_clear()
    _loaded.clear()


@cache
def _packages() -> Mapping[str, str]:
    """Package by type."""
    return {**_announced(metadata.distributions()), **_folders()}


def _folders() -> dict[str, str]:
    found = {}
    for module in pkgutil.iter_modules(engines.__path__, f"{engines.__name__}."):
        if module.ispkg:
            found[importlib.import_module(module.name).TYPE] = module.name
    return found


def _announced(distributions: Iterable[metadata.Distribution]) -> dict[str, str]:
    """Of one name announced twice, the distribution that comes first on the search path has it."""
    found: dict[str, str] = {}
    for distribution in distributions:
        try:
            points = distribution.entry_points.select(group=GROUP)
        except (TypeError, ValueError, OSError) as error:
            # Metadata of any package that is installed here, whatever it is for.
            logger.error("entry points of a distribution cannot be read: %s", error)
            continue
        for point in points:
            if TYPE_NAME.fullmatch(point.name):
                found.setdefault(point.name, point.value)
            else:
                logger.error("entry point %r of %s: no name of an engine type", point.name, GROUP)
    return found


_loaded: dict[tuple[str, str], object] = {}
"""By type and face: the face, or the error that every later question gets too."""


def _face(type_name: str, face: str, attribute: str, protocol: type[T]) -> T:
    """A face of a type; raises EngineTypeError."""
    package = _packages().get(type_name)
    if package is None:
        raise UnknownEngineError(
            f"engine type {type_name!r:.80} is not known here (known: {', '.join(known())})"
        )
    key = (type_name, face)
    if key not in _loaded:
        _loaded[key] = _load(type_name, f"{package}.{face}", attribute, protocol)
    found = _loaded[key]
    if isinstance(found, BrokenEngineError):
        raise found
    return found  # type: ignore[return-value]  # `_load` has looked


def _load(type_name: str, module: str, attribute: str, protocol: type[T]) -> T | BrokenEngineError:
    what = f"engine type {type_name!r}: {module}"
    try:
        found = getattr(importlib.import_module(module), attribute)
        if isinstance(found, protocol):
            return found
        error = BrokenEngineError(f"{what}.{attribute} is no {protocol.__name__}")
    except (Exception, SystemExit) as raised:
        # Code of others: whatever it raises while it is loaded ends no other service.
        error = BrokenEngineError(f"{what}: {type(raised).__name__}: {raised!s:.200}")
    logger.error("%s", error)
    return error
