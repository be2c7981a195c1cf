"""Errors of a download."""

from __future__ import annotations


class DownloadError(Exception):
    """The weights cannot be had; the message says why, and holds no credential."""


class WrongDigestError(DownloadError):
    """What came is not what was asked for."""
