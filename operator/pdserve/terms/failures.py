"""How a request to an instance fails."""

from typing import Literal

Failure = Literal["connect", "lost", "status", "timeout"]
"""No connection; a connection lost under the request; a 5xx; no byte in time."""
