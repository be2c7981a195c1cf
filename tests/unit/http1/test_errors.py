"""Errors as clients see them, in a reply or in a stream."""

from __future__ import annotations

import json

from pdserve.http1.errors import ApiError
from pdserve.http1.send import STATUS_LINES, chunk

ERROR = ApiError(400, "temperature: 'hot' is no number", param="temperature", code="invalid_value")
VALUE = {
    "error": {
        "message": "temperature: 'hot' is no number",
        "type": "invalid_request_error",
        "param": "temperature",
        "code": "invalid_value",
    }
}


def test_body_and_event_carry_the_same_object() -> None:
    assert ERROR.value() == json.loads(ERROR.body()) == VALUE
    event = ERROR.event()
    assert event.startswith(b'data: {"error"')
    assert event.endswith(b"}\n\n")
    assert json.loads(event.removeprefix(b"data: ")) == VALUE


def test_framing() -> None:
    assert chunk(b"x" * 17) == b"11\r\n" + b"x" * 17 + b"\r\n"
    assert STATUS_LINES[503] == b"HTTP/1.1 503 Service Unavailable\r\n"
    assert STATUS_LINES[499] == b"HTTP/1.1 499 Client Closed Request\r\n"
