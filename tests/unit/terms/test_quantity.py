"""Quantities as Kubernetes reads them (its own test tables), and nothing else."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdserve.terms.quantity import FINEST, HIGHEST, QuantityError, quantity


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("0", 0),
        ("100", 100),
        ("+5", 5),
        ("-5", -5),
        ("0.5", Fraction(1, 2)),
        (".5", Fraction(1, 2)),
        ("5.", 5),
        ("-.1", Fraction(-1, 10)),
        ("00012", 12),
        ("1n", Fraction(1, 10**9)),
        ("1u", Fraction(1, 10**6)),
        ("100m", Fraction(1, 10)),
        ("1k", 10**3),
        ("1M", 10**6),
        ("1G", 10**9),
        ("1T", 10**12),
        ("1P", 10**15),
        ("1E", 10**18),
        ("1Ki", 2**10),
        ("1Mi", 2**20),
        ("1Gi", 2**30),
        ("1Ti", 2**40),
        ("1Pi", 2**50),
        ("1Ei", 2**60),
        ("0.5Ki", 512),
        ("1.5G", 15 * 10**8),
        ("100e3", 10**5),
        ("100E3", 10**5),
        ("1e-3", Fraction(1, 1000)),
        ("1e+3", 1000),
        ("1E-1", Fraction(1, 10)),
        ("0e9", 0),
        # Beyond 64 bits it is cut; finer than a billionth it is rounded away from zero.
        ("9Ei", HIGHEST),
        ("-9Ei", -HIGHEST),
        ("1e999999999", HIGHEST),
        ("1e-999999999", Fraction(1, FINEST)),
        ("0.0000000001", Fraction(1, FINEST)),
        ("-0.5n", Fraction(-1, FINEST)),
        ("0e999999999", 0),
        ("9" * 200, HIGHEST),
        (7, 7),
        (2.5, Fraction(5, 2)),
        (1e308, HIGHEST),
        (10**400, HIGHEST),
    ],
)
def test_amounts(text: Any, want: Fraction | int) -> None:
    assert quantity(text) == want


@pytest.mark.parametrize(
    "value",
    [
        "",
        " 1",
        "1 ",
        "1\n",
        "1ki",
        "1K",
        "1mm",
        "1.1.1",
        "--1",
        "+",
        ".",
        "e3",
        "1e",
        "1e1.5",
        "1e3Ki",
        "0x1",
        "1_0",
        "\u0661",
        "Ki",
        "inf",
        "nan",
        "1" * 401,
        "1e" + "1" * 10,
        None,
        True,
        [],
        {},
        b"1",
        float("inf"),
        float("nan"),
    ],
)
def test_anything_else_is_refused_and_shown_shortly(value: Any) -> None:
    with pytest.raises(QuantityError) as refused:
        quantity(value)
    assert len(str(refused.value)) < 160


@given(
    st.text(max_size=30) | st.from_regex(r"[+-]?[0-9]{0,9}[.]?[0-9]{0,9}[a-zA-Z]{0,2}[0-9]{0,9}")
)
def test_any_text_is_a_bounded_amount_or_refused(text: str) -> None:
    try:
        amount = quantity(text)
    except QuantityError:
        return
    assert -HIGHEST <= amount <= HIGHEST
    assert FINEST % amount.denominator == 0
