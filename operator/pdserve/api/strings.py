"""Kinds of strings that several types use: names, labels, images, device resources."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

from pdserve.api.base import VALIDATIONS, Rule, Text, cel_string, validation
from pdserve.terms.json import JsonObject
from pdserve.terms.times import timestamp

_LABEL_PART = r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?"
_DOMAIN = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?"
_DNS_LABEL = r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$"
_LOWER = "lower-case letters, digits and '-', starting and ending with a letter or digit"

MAX_SERVICE_NAME = 30
MAX_SCENARIO_NAME = 20
SERVICE_NAME = Text(
    MAX_SERVICE_NAME,
    pattern=r"^[a-z]([a-z0-9-]*[a-z0-9])?$",
    says="lower-case letters, digits and '-', starting with a letter, at most 30 characters",
)
GROUP_NAME = Text(
    MAX_SERVICE_NAME + 1 + MAX_SCENARIO_NAME,
    pattern=SERVICE_NAME.pattern,
    says="lower-case letters, digits and '-', starting with a letter, at most 51 characters",
)
"""Of a ScenarioGroup: `<service>-<scenario>` when a PDService makes it."""


def name_rule(name: Text) -> Rule:
    """The rule that an object's own name is one of `name`, one of the two above."""
    return Rule(
        f"self.metadata.name.size() <= {name.max} && "
        f"self.metadata.name.matches({cel_string(name.pattern)})",
        f"must be at most {name.max} lower-case letters, digits and '-', starting with a "
        "letter, so that labels and pod names made of it fit",
        lambda v: not v.name or name.problem(v.name) is None,
        ".metadata.name",
    )


LABEL_KEY = Text(
    317,
    pattern=rf"^({_DOMAIN}/)?{_LABEL_PART}$",
    says="a label key such as fabric.example.com/leaf",
)
LABEL_VALUE = Text(63, pattern=rf"^{_LABEL_PART}$", says="a label value of at most 63 characters")

ServiceName = Annotated[str, SERVICE_NAME]
ScenarioName = Annotated[str, Text(MAX_SCENARIO_NAME, pattern=_DNS_LABEL, says=_LOWER)]
LevelName = Annotated[str, Text(20, pattern=_DNS_LABEL, says=_LOWER)]
ObjectName = Annotated[
    str,
    Text(253, pattern=rf"^{_DOMAIN}$", says="the name of an object: lower-case, digits, '-', '.'"),
]
LabelKey = Annotated[str, LABEL_KEY]
LabelValue = Annotated[str, LABEL_VALUE]
ConditionType = Annotated[
    str,
    Text(
        316,
        pattern=r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?$",
        says="the type of a condition like PreemptScheduled",
    ),
]
ModelName = Annotated[
    str,
    Text(
        256,
        pattern=r"^[^\x00-\x20\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]*[^\x00-\x20\x7f-\x9f])?$",
        says="a model name: printable text that neither starts nor ends with a space",
    ),
]
EngineType = Annotated[
    str,
    Text(
        63,
        pattern=r"^[A-Za-z][A-Za-z0-9-]*$",
        says="letters, digits and '-', starting with a letter",
    ),
]
Image = Annotated[
    str,
    Text(
        512,
        pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._:/@-]*$",
        says="an image reference such as registry.example.com/pdserve/engine:1.0",
    ),
]
ResourceName = Annotated[
    str,
    Text(
        128,
        pattern=rf"^{_DOMAIN}/{_LABEL_PART}$",
        says="an extended resource such as huawei.com/Ascend910",
    ),
]
Short = Annotated[str, Text(64)]
Line = Annotated[str, Text(256, clip=True)]
Paragraph = Annotated[str, Text(1024, min=0, clip=True)]
Reason = Annotated[
    str,
    Text(64, pattern=r"^[A-Za-z][A-Za-z0-9]*$", says="one CamelCase word"),
]
Time = Annotated[
    str,
    Text(
        32,
        pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z$",
        says="a UTC time such as 2026-01-31T08:15:00Z",
    ),
]


@dataclass(frozen=True, slots=True)
class Meaningful:
    """A string that means something: one rule beyond its characters, in CEL and in Python.

    Stands after its `Text`, so that only a string of the right form is looked at.
    """

    cel: str
    """True, not false or an error, where `self` is right."""
    says: str
    check: Callable[[str], bool]

    def __get_pydantic_core_schema__(
        self, source: object, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        def check(value: str) -> str:
            if not self.check(value):
                raise PydanticCustomError("bounds", "{want}", {"want": self.says})
            return value

        return core_schema.no_info_after_validator_function(check, handler(source))

    def __get_pydantic_json_schema__(
        self, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonObject:
        schema = handler(core)
        rule = validation(self.cel, self.says)
        return schema | {VALIDATIONS: [*schema.get(VALIDATIONS, ()), rule]}


Moment = Annotated[
    Time,
    Meaningful(
        "timestamp(self) > timestamp('1970-01-01T00:00:00Z')",
        "must be a time that the calendar has",
        lambda value: (timestamp(value) or 0.0) > 0.0,
    ),
]
"""A time that a person states."""
