"""Kubernetes quantities (`resource.Quantity`): amounts of a resource as objects state them. Pure.

    quantity = [sign] digits[.digits] [suffix]
    suffix   = n u m k M G T P E | Ki Mi Gi Ti Pi Ei | e[sign]digits | E[sign]digits

Source: k8s.io/apimachinery/pkg/api/resource (quantity.go). As there, amounts beyond a signed 64-bit
integer are cut to it, and what is finer than a billionth is rounded away from zero.
"""

from __future__ import annotations

import functools
import re
from fractions import Fraction
from typing import Final

from pdserve.terms.shown import shown

HIGHEST: Final = 2**63 - 1
FINEST: Final = 10**9
_FACTORS: Final = {
    "n": Fraction(1, 10**9), "u": Fraction(1, 10**6), "m": Fraction(1, 1000), "": Fraction(1),
    "k": Fraction(10**3), "M": Fraction(10**6), "G": Fraction(10**9), "T": Fraction(10**12),
    "P": Fraction(10**15), "E": Fraction(10**18),
    "Ki": Fraction(2**10), "Mi": Fraction(2**20), "Gi": Fraction(2**30), "Ti": Fraction(2**40),
    "Pi": Fraction(2**50), "Ei": Fraction(2**60),
}  # fmt: skip
_QUANTITY = re.compile(
    r"([+-]?)(\d{1,200}\.?\d{0,200}|\.\d{1,200})(?:[eE]([+-]?\d{1,9})|([numkMGTPE]|[KMGTPE]i)?)",
    re.ASCII,
)
_WIDEST: Final = 500
"""Powers of ten; beyond it every amount of at most 200 digits is 0 or cut, whatever its digits."""


class QuantityError(ValueError):
    """A value is not a Kubernetes quantity; the message shows it."""


def quantity(value: object) -> Fraction:
    """The amount that a quantity states, as a string or a JSON number (the API takes both).

    At most `HIGHEST` and at least minus that; a multiple of 1 / `FINEST`.

    Raises:
        QuantityError: `value` is not a quantity.
    """
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise QuantityError(f"want a quantity such as 8 or 1500m, got {shown(value)}")
    if isinstance(value, int):
        return _cut(Fraction(value))
    found = _of_text(str(value))
    if found is None:
        raise QuantityError(f"want a quantity such as 8 or 1500m, got {shown(value)}")
    return found


@functools.lru_cache(maxsize=4096)
def _of_text(text: str) -> Fraction | None:
    """The amount, None for no quantity. Kept: a cluster's objects state few different ones."""
    matched = _QUANTITY.fullmatch(text)
    if matched is None:
        return None
    sign, digits, exponent, suffix = matched.groups()
    amount = Fraction(digits)
    if exponent is None:
        amount *= _FACTORS[suffix or ""]
    else:
        amount *= Fraction(10) ** max(-_WIDEST, min(int(exponent), _WIDEST))
    return _cut(-amount if sign == "-" else amount)


def _cut(amount: Fraction) -> Fraction:
    if abs(amount) >= HIGHEST:
        return Fraction(HIGHEST if amount > 0 else -HIGHEST)
    parts = abs(amount) * FINEST
    whole = Fraction(-(-parts.numerator // parts.denominator), FINEST)
    return -whole if amount < 0 else whole
