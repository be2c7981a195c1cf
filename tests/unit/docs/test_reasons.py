"""docs/troubleshooting.md explains every code that the code can emit, and no other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from tests.unit.docs import codes

PAGE = (Path(__file__).resolve().parents[3] / "docs" / "troubleshooting.md").read_text()


@pytest.mark.parametrize("reason", sorted(codes.reasons()))
def test_every_reason_is_explained(reason: str) -> None:
    assert f"`{reason}`" in PAGE


@pytest.mark.parametrize("code", sorted(codes.error_codes()))
def test_every_error_code_is_explained(code: str) -> None:
    assert f"`{code}`" in PAGE


@pytest.mark.parametrize(
    "code",
    # One of each place where codes are looked for.
    ["NoFit", "UnknownDomain", "CountsMissing", "ProtectedField", "Invalid", "Observing",
     "Creating", "ScenarioMissing", "Degraded", "NameTaken", "HoldNoData", "InitialCounts",
     "CrashLoop", "ErrImagePull", "InstanceSubstituted", "Held", "LabelMissing",
     "LinksVerified", "Paused"],
)  # fmt: skip
def test_the_search_finds_codes_in_every_place(code: str) -> None:
    assert code in codes.reasons()


@pytest.mark.parametrize(
    "code",
    ["invalid_json", "invalid_value", "model_not_found", "deadline_exceeded", "decode_overload",
     "waiting_room_full", "upstream_error", "too_large", "kv_failed", "full", "wrong_role"],
)  # fmt: skip
def test_the_search_finds_error_codes_in_every_place(code: str) -> None:
    assert code in codes.error_codes()


def test_no_code_on_the_page_is_stale() -> None:
    source = "\n".join(p.read_text() for p in sorted(codes.SOURCE.rglob("*.py")))
    named = set(re.findall(r"`((?:[A-Z][a-z]+){2,})`", PAGE))
    assert {w for w in named if not re.search(rf"\b{w}\b", source)} == set()


def test_links_within_the_page_lead_somewhere() -> None:
    titles = {_anchor(t) for t in re.findall(r"^#+ (.*)$", PAGE, re.M)}
    assert {a for a in re.findall(r"\]\(#([^)]+)\)", PAGE) if a not in titles} == set()


def _anchor(title: str) -> str:
    """As GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-")
