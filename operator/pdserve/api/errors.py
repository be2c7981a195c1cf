"""How an object that does not fit the API is reported: path, value, and what would be right."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pydantic import ValidationError

from pdserve.terms.json import JsonObject

MAX_VALUE_CHARS = 80


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an object.

    `path` is written as the API server writes it (`spec.scenarios[0].slo.ttft`), `value` is what
    was found there (shortened), `want` says what would be right.
    """

    path: str
    value: str
    want: str

    def __str__(self) -> str:
        return f"{self.path}: {self.value}: {self.want}"


class InvalidObjectError(ValueError):
    """An object is not valid; `problems` lists everything found, in document order."""

    def __init__(self, subject: str, problems: Iterable[Problem]) -> None:
        self.subject = subject
        self.problems = tuple(problems)
        super().__init__(f"{subject}: " + "; ".join(str(p) for p in self.problems))


def problems_of(error: ValidationError) -> tuple[Problem, ...]:
    """Translate pydantic's errors into the API server's vocabulary."""
    return tuple(_problem(dict(e)) for e in error.errors(include_url=False))


def _problem(error: JsonObject) -> Problem:
    context = error.get("ctx") or {}
    path = (_path(error["loc"]) + str(context.get("field", ""))).lstrip(".") or "object"
    kind = error["type"]
    value = error.get("input")
    if kind == "missing":
        return Problem(path, "missing", "required value")
    if kind == "extra_forbidden":
        return Problem(path, _shown(value), "unknown field")
    if kind == "literal_error":
        return Problem(path, _shown(value), f"one of {context['expected']}")
    if "field" in context:
        value = _at(value, str(context["field"]))
    return Problem(path, _shown(value), error["msg"])


def _path(loc: Iterable[str | int]) -> str:
    path = ""
    for part in loc:
        path += f"[{part}]" if isinstance(part, int) else f".{part}"
    return path


def _at(value: object, field: str) -> object:
    for part in field.strip(".").split("."):
        value = value.get(part) if isinstance(value, dict) else value
    return value


def _shown(value: object) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deeply, a number of too many digits
        text = f"a {type(value).__name__} that cannot be shown"
    return text if len(text) <= MAX_VALUE_CHARS else text[: MAX_VALUE_CHARS - 3] + "..."
