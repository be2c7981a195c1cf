"""Strings with a unit: how people write times and link speeds where floats are not allowed."""

from __future__ import annotations

import re
from typing import Any, ClassVar, Self

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pdserve.api.base import VALIDATIONS, cel_string, validation
from pdserve.terms.json import JsonObject


class UnitString(str):
    """A number with up to three decimals and a unit; keeps its text, so it round-trips.

    Raises:
        ValueError: on construction, when the text is not of this form or not in the bounds.
    """

    __slots__ = ()
    units: ClassVar[dict[str, float]] = {}
    repeats: ClassVar[bool] = False
    """Several numbers with units may stand one after another, and are added up."""
    max_length: ClassVar[int] = 16
    example: ClassVar[str] = ""
    lowest: ClassVar[float] = 0.0
    """Exclusive."""
    highest: ClassVar[float] = float("inf")

    def __new__(cls, text: str) -> Self:
        """Check and keep `text`."""
        value = super().__new__(cls, text)
        if len(text) > cls.max_length or not re.fullmatch(cls.pattern(), text):
            raise ValueError(f"must be {cls.example}")
        if not cls.lowest < value._number() <= cls.highest:
            raise ValueError(f"must be {cls.example}")
        return value

    @classmethod
    def pattern(cls) -> str:
        """Regular expression of the whole text (RE2 and Python)."""
        one = rf"[0-9]{{1,6}}(\.[0-9]{{1,3}})?({'|'.join(cls.units)})"
        return f"^({one})+$" if cls.repeats else f"^{one}$"

    def _number(self) -> float:
        parts = re.findall(r"([0-9.]+)([A-Za-z]+)", self)
        return sum(float(number) * self.units[unit] for number, unit in parts)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def read(value: Any) -> UnitString:
            try:
                return cls(value)
            except (TypeError, ValueError):
                raise PydanticCustomError("unit", f"must be {cls.example}") from None

        return core_schema.no_info_plain_validator_function(
            read, serialization=core_schema.to_string_ser_schema()
        )

    @classmethod
    def __get_pydantic_json_schema__(
        cls, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonObject:
        return {
            "type": "string",
            "maxLength": cls.max_length,
            VALIDATIONS: [validation(cls.cel(), f"must be {cls.example}")],
        }

    @classmethod
    def cel(cls) -> str:
        """CEL expression over `self`: the test of `pattern`, for the API server."""
        return f"self.matches({cel_string(cls.pattern())}) && self.matches('[1-9]')"


class Duration(UnitString):
    """A positive time up to ten minutes, such as `800ms`, `1.5s` or `1m30s`."""

    __slots__ = ()
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}  # noqa: RUF012  a ClassVar in the base
    repeats = True
    example = "a positive duration up to 10m, such as 800ms, 1.5s or 1m30s"
    highest = 600.0

    @classmethod
    def cel(cls) -> str:
        """CEL expression over `self`: pattern, then bounds.

        `duration()` fails on text that is not one.
        """
        return f"{super().cel()} && duration(self) <= duration('{cls.highest:.0f}s')"

    @property
    def seconds(self) -> float:
        """Length in seconds: above 0, at most 600."""
        return self._number()


class Bandwidth(UnitString):
    """A positive link speed, such as `400Gbps` or `6.4Tbps` (decimal, bits per second)."""

    __slots__ = ()
    units = {"Mbps": 1e6, "Gbps": 1e9, "Tbps": 1e12}  # noqa: RUF012  a ClassVar in the base
    example = "a positive bandwidth, such as 400Gbps or 6.4Tbps"

    @property
    def bits_per_second(self) -> float:
        """Speed in bits per second."""
        return self._number()
