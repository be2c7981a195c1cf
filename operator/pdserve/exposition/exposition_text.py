"""Spelling of the text format 0.0.4: names, labels, numbers, and what is refused.

Rendering happens on the event loop that serves requests, so series spell their names and labels
once, when they are made; only numbers are spelled at every scrape.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")
_SPECIAL = {"inf": "+Inf", "-inf": "-Inf", "nan": "NaN"}


class MetricError(ValueError):
    """A metric was declared or used against its declaration."""


def check_names(name: str, help_text: str, labels: Sequence[str]) -> None:
    """Refuse a declaration Prometheus would not read; label `le` belongs to histograms.

    Raises:
        MetricError: a name has other characters, or the help text is blank.
    """
    if not _NAME.match(name):
        raise MetricError(f"metric name {name!r}: want letters, digits, '_' or ':'")
    for label in labels:
        if not _LABEL.match(label) or label == "le":
            raise MetricError(f"metric {name}: label {label!r} is not a usable label name")
    if not help_text.strip():
        raise MetricError(f"metric {name}: a help text is required")


def head(name: str, help_text: str, kind: str) -> tuple[str, str]:
    """The two comment lines before the series of a metric."""
    text = help_text.replace("\\", r"\\").replace("\n", r"\n")
    return f"# HELP {name} {text}", f"# TYPE {name} {kind}"


def pairs(names: Sequence[str], values: Sequence[str]) -> str:
    """Labels as they stand inside the braces, values escaped; "" without labels.

    Raises:
        ValueError: there are not as many values as names.
    """
    return ",".join(f'{n}="{_escape(v)}"' for n, v in zip(names, values, strict=True))


def number(value: float) -> str:
    """A sample value in Python's shortest exact form; whole numbers below 1e15 have no point."""
    if -1e15 < value < 1e15 and value.is_integer():
        return str(int(value))
    spelled = repr(value)
    return _SPECIAL.get(spelled, spelled)


def bound(value: float) -> str:
    """A bucket's inclusive upper bound, always as a float, as Prometheus 3 stores `le`."""
    spelled = repr(float(value))
    return _SPECIAL.get(spelled, spelled)


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
