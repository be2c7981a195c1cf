"""How the operator logs: text for people, or one JSON object per line for machines."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

from pdserve.controllers.log_limits import Sparing
from pdserve.kube.lines import FIELDS
from pdserve.terms.json import JsonObject

_TEXT = "%(asctime)s %(levelname)-7s %(name)s: %(message)s"


class TextLines(logging.Formatter):
    """Time, severity, logger, message; then the fields as `name=value`, quoted where they must be.

    A record is one line, whatever its message and its fields hold; an exception follows it.
    """

    def __init__(self) -> None:
        super().__init__(_TEXT)

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        """See the class."""
        line = super().formatMessage(record)
        told = "".join(f" {k}={_value(v)}" for k, v in _fields(record).items())
        return line.replace("\n", "\\n").replace("\r", "\\r") + told


class JsonLines(logging.Formatter):
    """One JSON object per record: time, severity, logger, message, and the exception if any.

    The fields of a record stand beside these.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        line: JsonObject = {
            **_fields(record),
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "severity": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def _fields(record: logging.LogRecord) -> JsonObject:
    found: JsonObject = getattr(record, FIELDS, {})
    return found


def _value(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and not set(text) & set(' "=')
    return text if plain else json.dumps(text, ensure_ascii=False)


def set_up(log_format: str, level: str) -> None:
    """Configure the root logger of this process."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else TextLines())
    handler.addFilter(Sparing())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    # kopf logs every event it hands out; what came of it is in our own logs.
    logging.getLogger("kopf").setLevel(logging.WARNING)
    # It warns that it gets no signals, on purpose: it runs in a thread.
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
