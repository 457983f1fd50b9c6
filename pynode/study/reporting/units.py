"""Numbers as they are read: seconds with their unit, errors as powers of ten."""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from typing import Any

__all__ = ["amount", "brief", "count", "day", "megabytes", "plus_minus", "scientific", "seconds", "slug"]

_UNITS = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns"))


def seconds(value: float, digits: int = 3) -> str:
    """A time with its unit, e.g. `"1.25 ms"`; empty where it is unknown."""
    if not math.isfinite(value):
        return ""
    scale, unit = next((pair for pair in _UNITS if abs(value) >= pair[0] * (1 - 1e-9)), _UNITS[-1])
    return f"{_digits(value / scale, digits)} {unit}"


def scientific(value: float) -> str:
    """An error, e.g. `"3.1e-06"` as `"3.1×10⁻⁶"`; powers of ten without their factor."""
    if not math.isfinite(value):
        return ""
    if value == 0:
        return "0"
    factor, exponent = f"{value:.1e}".split("e")
    power = "10" + str(int(exponent)).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    return power if factor == "1.0" else f"{factor}×{power}"


def brief(value: float) -> str:
    """A tolerance or a step as one types it: `"1e-6"`, `"0.05"`."""
    text = f"{value:.3g}" if 1e-2 <= abs(value) < 1e3 else f"{value:.2e}"
    factor, letter, exponent = text.partition("e")
    if not letter:
        return text
    return f"{factor.rstrip('0').rstrip('.')}e{int(exponent)}"


def plus_minus(mean: float, deviation: float) -> str:
    """A mean with its standard deviation, both to the second digit of the deviation."""
    if not math.isfinite(mean):
        return ""
    if not (math.isfinite(deviation) and deviation > 0):
        text = _digits(mean, 3)
        return text if not math.isfinite(deviation) else f"{text} ± 0"
    places = min(max(0, 1 - math.floor(math.log10(deviation))), 12)
    if places > 6 and abs(mean) < 1e-3:
        return f"{scientific(mean)} ± {scientific(deviation)}"
    return f"{mean:,.{places}f} ± {deviation:,.{places}f}".replace(",", "\u202f")


def day(moment: Any) -> str:
    """A moment to the minute: seconds since 1970, or a text of ISO's form."""
    if isinstance(moment, (int, float)):
        return datetime.fromtimestamp(moment, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return str(moment).replace("T", " ")[:16]


def count(value: float) -> str:
    """A number of evaluations or steps, with thin spaces between thousands."""
    return f"{value:,.0f}".replace(",", "\u202f") if math.isfinite(value) else ""


def megabytes(value: float) -> str:
    """Memory, e.g. `"12.5 MB"`."""
    return f"{_digits(value, 3)} MB" if math.isfinite(value) else ""


def amount(value: float, kind: str) -> str:
    """A work in the unit of its kind."""
    return f"{count(value)} evaluations" if kind == "nfe" else seconds(value)


def _digits(value: float, digits: int) -> str:
    if abs(value) >= 10**digits:
        return f"{value:.0f}"
    text = f"{value:.{digits}g}"
    return f"{float(text):g}" if "e" in text else text


def slug(text: str) -> str:
    """The text as part of a file's name or a class's: letters, digits, hyphens and underscores."""
    return re.sub(r"[^A-Za-z0-9_]+", "-", text).strip("-").lower() or "unnamed"
