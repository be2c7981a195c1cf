"""Log lines with fields: what happened to which object, for people and for machines.

`say` logs one line at INFO. The fields travel in the record under `FIELDS`; the formatters of the
process spell them (the operator's are in `controllers.logs`).
"""

from __future__ import annotations

import logging
from typing import Final

FIELDS: Final = "pdserve_fields"
"""Attribute of a log record: its fields, a dict of JSON values."""


def say(log: logging.Logger, message: str, **fields: str | int | None) -> None:
    """Log `message` at INFO with `fields`; those that are None or "" are left out.

    Fields must not hold secrets: names, counts and reasons only.
    """
    known = {k: v for k, v in fields.items() if v is not None and v != ""}
    log.info("%s", message, extra={FIELDS: known})
