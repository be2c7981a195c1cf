"""What every API type is built from: a strict frozen model, bounded fields, and rules.

A field states its bounds once, with a marker (`Text`, `Int`, `Number`, `Items`,
`Entries`); a model states
its cross-field rules once, as `Rule`s with a CEL text and the same test in Python. From both come
the parser here, the CRD (`schema`, `crd`) and the reference page (`reference`), so none of them
can disagree. Nothing here knows a kind.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    ValidationError,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pdserve.api.errors import InvalidObjectError, problems_of
from pdserve.terms.json import JsonObject

VALIDATIONS = "x-kubernetes-validations"
MAX_INT64 = (1 << 53) - 1
"""Largest bound the API server reads exactly out of a CRD (it passes through a float)."""


_SHORT = 64
_REMEMBERED = 1024
"""Texts of up to `_SHORT` characters that each kind of field remembers as right."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule that the API server enforces on a model (`x-kubernetes-validations`).

    `cel` sees the model as `self`; `message` says what would be right; `check` is the same test
    on a parsed model (None for transition rules, which need the old object); `field` is the
    child the error is reported at, e.g. `.max`.
    """

    cel: str
    message: str
    check: Callable[[Any], bool] | None
    field: str = ""


def cel_string(text: str) -> str:
    """`text` as a CEL string literal in single quotes, with backslashes and quotes escaped."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def validation(rule: str, message: str, field: str = "") -> dict[str, str]:
    """One entry of `x-kubernetes-validations`.

    `rule` is CEL and true where the value is right; `message` says what would be right. `field` is
    the CEL path of the field at fault (`.spec.x`); "" leaves it to the rule's own place.
    """
    return {"rule": rule, "message": message} | ({"fieldPath": field} if field else {})


@dataclass(frozen=True, slots=True)
class Text:
    """A string of `min`..`max` characters that matches `pattern` as a whole; `says` explains it.

    With `clip`, text that is too long is cut instead of refused: for messages in status.
    """

    max: int
    min: int = 1
    pattern: str = ""
    says: str = ""
    clip: bool = False

    def problem(self, value: str) -> str | None:
        """What would be right (for people, without the field's path), or None when `value` is."""
        if not self.min <= len(value) <= self.max:
            return f"must have {self.min} to {self.max} characters"
        if self.pattern and not re.fullmatch(self.pattern, value):
            return f"must be {self.says}"
        return None

    def clipped(self, value: str) -> str:
        """`value`, cut to `max` characters where that is allowed, and unchanged elsewhere."""
        too_long = self.clip and len(value) > self.max
        return value[: self.max - 3] + "..." if too_long else value

    def schema(self) -> JsonObject:
        """OpenAPI of the string. A CEL rule, not `pattern`, because it can say what is right."""
        schema: JsonObject = {"type": "string", "maxLength": self.max}
        if self.min:
            schema["minLength"] = self.min
        if self.pattern:
            schema[VALIDATIONS] = [
                validation(f"self.matches({cel_string(self.pattern)})", f"must be {self.says}")
            ]
        return schema

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        clipped = core_schema.no_info_after_validator_function(self.clipped, handler(source))
        return _checked(clipped if self.clip else handler(source), self._problem_once())

    def _problem_once(self) -> Callable[[str], str | None]:
        """`problem`, with short texts that were right remembered: most come again and again."""
        right: set[str] = set()

        def problem(value: str) -> str | None:
            if value in right:
                return None
            wrong = self.problem(value)
            if wrong is None and len(value) <= _SHORT and len(right) < _REMEMBERED:
                right.add(value)
            return wrong

        return problem if self.pattern else self.problem

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        return handler(core) | self.schema()


@dataclass(frozen=True, slots=True)
class Int:
    """A whole number from `min` to `max`; strings, floats and booleans are refused."""

    min: int
    max: int
    bits: int = 32

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        want = f"must be a whole number from {self.min} to {self.max}"

        def check(value: Any) -> int:
            if type(value) is not int or not self.min <= value <= self.max:
                raise PydanticCustomError("int_range", want)
            return value

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonObject:
        bounds = {"minimum": self.min, "maximum": self.max}
        return {"type": "integer", "format": f"int{self.bits}", **bounds}


@dataclass(frozen=True, slots=True)
class Number:
    """A number from `min` to `max`, whole or not; strings, booleans and NaN are refused.

    A whole number stays one, so that an object is stored as it was written.
    """

    min: float
    max: float

    def __get_pydantic_core_schema__(
        self, _source: object, _handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def check(value: Any) -> float:
            if type(value) not in (int, float) or not self.min <= value <= self.max:
                raise PydanticCustomError("number_range", self._want)
            # The type was compared, not narrowed: a bool is no number here.
            return value  # type: ignore[no-any-return]

        return core_schema.no_info_plain_validator_function(check)

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonObject:
        whole = math.floor(self.min)
        schema: JsonObject = {"type": "number", "format": "double"}
        schema |= {"minimum": whole, "maximum": self.max}
        if whole != self.min:
            # The API server cuts `minimum` to a whole number where the value is one.
            schema[VALIDATIONS] = [validation(f"self >= {self.min}", self._want)]
        return schema

    @property
    def _want(self) -> str:
        return f"must be a number from {self.min:g} to {self.max:.0f}"


class _Checked:
    """A bound that tests a whole parsed value by its `problem`."""

    __slots__ = ()
    problem: Callable[[Any], str | None]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        return _checked(handler(source), self.problem)


@dataclass(frozen=True, slots=True)
class Items(_Checked):
    """A list of `min`..`max` items; with `keys`, no two items agree in all of them.

    `keys` makes it a list-map for server-side apply; without, the list is one value (atomic).
    """

    max: int
    min: int = 0
    keys: tuple[str, ...] = ()

    def problem(self, value: tuple[object, ...]) -> str | None:
        """What would be right (for people, without the field's path), or None when `value` is.

        Counts entries and finds equal keys; the entries' own values are their types' to check.
        """
        if not self.min <= len(value) <= self.max:
            return f"must have {self.min} to {self.max} items"
        if self.keys:
            kind: Any = type(value[0]) if value else ApiModel
            fields = _fields_of(kind, self.keys) if value else ()
            seen = ["/".join(str(getattr(item, f)) for f in fields) for item in value]
            twice = sorted({key for key in seen if seen.count(key) > 1})
            if twice:
                return f"items must differ in {', '.join(self.keys)}: {', '.join(twice)} repeats"
        return None

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        schema = handler(core) | {"maxItems": self.max}
        if self.min:
            schema["minItems"] = self.min
        schema["x-kubernetes-list-type"] = "map" if self.keys else "atomic"
        if self.keys:
            schema["x-kubernetes-list-map-keys"] = list(self.keys)
        return schema


@dataclass(frozen=True, slots=True)
class Entries(_Checked):
    """A string map of `min`..`max` entries; `key` and `value` bound their text."""

    max: int
    key: Text
    value: Text
    min: int = 0

    def problem(self, value: dict[str, str]) -> str | None:
        """What would be right (for people, without the field's path), or None when `value` is."""
        if not self.min <= len(value) <= self.max:
            return f"must have {self.min} to {self.max} entries"
        for k, v in value.items():
            if wrong := self.key.problem(k):
                return f"key {k!r} {wrong}"
            if wrong := self.value.problem(v):
                return f"value of {k!r} {wrong}"
        return None

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        schema = handler(core) | {
            "maxProperties": self.max,
            "additionalProperties": self.value.schema(),
            VALIDATIONS: [
                validation(
                    f"self.all(k, k.size() <= {self.key.max}"
                    f" && k.matches({cel_string(self.key.pattern)}))",
                    f"every key must be {self.key.says}",
                )
            ],
        }
        if self.min:
            schema["minProperties"] = self.min
        return schema


@dataclass(frozen=True, slots=True)
class Preserved(_Checked):
    """An object that keeps fields this API does not describe (a part of another API's type).

    At most `depth` lists and objects inside one another: the API server keeps thousands, and
    what copies or compares them has a stack. A schema cannot say so; the operator does.
    """

    depth: int = 64

    def problem(self, value: JsonObject) -> str | None:
        """What would be right (for people, without the field's path), or None when `value` is."""
        level: list[Any] = [value]
        for _ in range(self.depth):
            inner = (v for c in level for v in (c.values() if isinstance(c, Mapping) else c))
            level = [v for v in inner if isinstance(v, Mapping | list | tuple)]
            if not level:
                return None
        return f"must not be nested deeper than {self.depth}"

    def __get_pydantic_json_schema__(
        self, _core: CoreSchema, _handler: GetJsonSchemaHandler
    ) -> JsonObject:
        return {"type": "object", "x-kubernetes-preserve-unknown-fields": True}


class ApiModel(BaseModel):
    """Base of every API type: immutable, camelCase outside, unknown fields refused."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        populate_by_name=True,
        use_attribute_docstrings=True,
    )
    rules: ClassVar[tuple[Rule, ...]] = ()

    @model_validator(mode="after")
    def _obey_rules(self) -> Self:
        for rule in self.rules:
            if rule.check is not None and not rule.check(self):
                raise PydanticCustomError(
                    "rule", "{want}", {"want": rule.message, "field": rule.field}
                )
        return self

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.rules:
            schema[VALIDATIONS] = [validation(r.cel, r.message, r.field) for r in cls.rules]
        return schema

    def to_dict(self) -> JsonObject:
        """The object as JSON values with camelCase keys; absent optional fields left out."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)

    @classmethod
    def parse(cls, value: object, subject: str = "") -> Self:
        """Read a JSON value.

        Raises:
            InvalidObjectError: with path, value and what would be right, for every problem found.
        """
        try:
            return cls.model_validate(value)
        except ValidationError as error:
            raise InvalidObjectError(subject or cls.__name__, problems_of(error)) from None


class Observed(ApiModel):
    """Base of status types: written by the operator, so fields of another version are ignored."""

    model_config = ConfigDict(extra="ignore")


@functools.cache
def _fields_of(kind: Any, keys: tuple[str, ...]) -> tuple[str, ...]:
    """Attributes by the names that they have outside."""
    named = {field.alias or name: name for name, field in kind.model_fields.items()}
    return tuple(named[key] for key in keys)


def _checked(inner: CoreSchema, problem: Callable[[Any], str | None]) -> CoreSchema:
    def check(value: object) -> object:
        if wrong := problem(value):
            raise PydanticCustomError("bounds", "{want}", {"want": wrong})
        return value

    return core_schema.no_info_after_validator_function(check, inner)
