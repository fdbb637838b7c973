"""Numbers as readers see them, on the site, in the command and in exports."""

from __future__ import annotations

import math
from collections.abc import Sequence

SI = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def prefix(largest: float) -> tuple[float, str]:
    """Divisor and SI prefix for a set of values whose largest is given: 1.7e9 -> (1e9, "G")."""
    return next(((divisor, name) for divisor, name in SI if abs(largest) >= divisor), (1.0, ""))


def number(value: float, digits: int = 3) -> str:
    """A number with `digits` significant digits and no exponent where people would not write one."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return str(value)
    magnitude = math.floor(math.log10(abs(value)))
    if -4 <= magnitude < 6:
        rounded = round(value, digits - 1 - magnitude)
        text = f"{rounded:,.{max(0, digits - 1 - magnitude)}f}"
        text = text.rstrip("0").rstrip(".") if "." in text else text
        return text.replace("-", "\u2212")
    mantissa, _, exponent = f"{value:.{digits - 1}e}".partition("e")
    superscript = str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return f"{mantissa.replace('-', chr(0x2212))}·10{superscript}"


def quantity(value: float, unit: str, digits: int = 3) -> str:
    """A count with an SI prefix: (1.7e9, "MACs") -> "1.7 GMACs"."""
    divisor, name = prefix(value)
    return f"{number(value / divisor, digits)}\u00a0{name}{unit}"


def spread(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """The range of some values: "12–37 %", or one value."""
    low, high = number(min(values), digits), number(max(values), digits)
    return f"{low}{unit}" if low == high else f"{low}–{high}{unit}"


def amounts(values: Sequence[float], unit: str, digits: int = 2) -> str:
    """The range of some counts with SI prefixes: "1.2 GMACs–3.4 TMACs"."""
    low, high = quantity(min(values), unit, digits), quantity(max(values), unit, digits)
    return low if low == high else f"{low}–{high}"
