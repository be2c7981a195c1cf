"""One row of the table of bad objects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.support.api_objects import BASES, Object, edited


@dataclass(frozen=True, slots=True)
class Bad:
    """One thing wrong: the API server answers at `field` and says `says` among other words.

    `parser_field`: where the parser reports it, when that is another place.
    """

    name: str
    kind: str
    edits: Mapping[str, Any]
    field: str
    says: str
    parser_field: str = ""
    code: int = 422

    @property
    def object(self) -> Object:
        """The bad object."""
        return edited(BASES[self.kind](), self.edits)


def of_service(name: str, edits: Mapping[str, Any], at: str, says: str, **extra: Any) -> Bad:
    """A bad PDService."""
    return Bad(name, "PDService", edits, at, says, **extra)
