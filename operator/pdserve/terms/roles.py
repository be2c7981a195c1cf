"""The two roles of P/D disaggregation."""

from __future__ import annotations

from typing import Literal

Role = Literal["prefill", "decode"]
ROLES: tuple[Role, Role] = ("prefill", "decode")
"""In the order in which a request meets them."""
