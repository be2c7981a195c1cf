"""Errors of fetching and converting models."""

from __future__ import annotations


class ModelError(Exception):
    """A model cannot be fetched or converted; the message says what to do."""
