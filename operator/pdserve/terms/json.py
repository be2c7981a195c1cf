"""Names for JSON objects of which nothing is checked yet.

A value of one of these types may be anything that JSON can say. Code that reads one checks what it
takes (`terms.raw`, `wire.bounds`, `api`), once: what is made of it is a value of a type of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

JsonMap = Mapping[str, Any]
"""A JSON object as it was read; not to be changed."""
JsonObject = dict[str, Any]
"""A JSON object that is being built, or belongs to its reader."""
JsonValue = Any
"""One value of it."""
