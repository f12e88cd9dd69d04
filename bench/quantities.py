"""Quantities as people read them: ``12.3 ms``, ``4.1 MB``, ``1.25 %``. Unknown is a dash."""

from __future__ import annotations

from nemotrt.bench.results import ErrorCount

UNKNOWN = "–"  # noqa: RUF001 - an en dash is what a table shows for nothing
_DURATIONS = ((1.0, "s", 1.0), (1e-3, "ms", 1e3), (0.0, "µs", 1e6))


def duration(seconds: float | None) -> str:
    """Three significant digits in s, ms or µs."""
    if seconds is None:
        return UNKNOWN
    unit, scale = next((unit, scale) for least, unit, scale in _DURATIONS if seconds >= least)
    return f"{_three_digits(seconds * scale)} {unit}"


def counted(count: int, noun: str) -> str:
    """``1 clip``, ``2 clips``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def size(size_bytes: int | None) -> str:
    """Decimal units, as disks and downloads are counted."""
    if size_bytes is None:
        return UNKNOWN
    value = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.0f} {unit}" if unit == "B" else f"{_three_digits(value)} {unit}"
        value /= 1000
    return f"{_three_digits(value)} TB"


def percent(fraction: float | None) -> str:
    """A fraction in percent, two decimals."""
    return UNKNOWN if fraction is None else f"{fraction * 100:.2f} %"


def error_rate(count: ErrorCount | None) -> str:
    """``1.25 % (2 of 160)``."""
    if count is None or count.rate is None:
        return UNKNOWN
    return f"{percent(count.rate)} ({count.errors} of {count.length})"


def giga(value: float | None) -> str:
    """A count in billions, three significant digits, without unit."""
    return UNKNOWN if value is None else _three_digits(value / 1e9)


def whole(value: float | None) -> str:
    """A number with thousands separators; small ones keep three significant digits."""
    if value is None:
        return UNKNOWN
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else _three_digits(value)


def cosine(value: float | None) -> str:
    """Seven decimals: FP32 and FP16 differ in the fourth to seventh."""
    return UNKNOWN if value is None else f"{value:.7f}"


def scientific(value: float | None) -> str:
    """Two digits and an exponent, for differences."""
    if value is None:
        return UNKNOWN
    if value == 0:
        return "0"
    digits, _, exponent = f"{value:.1e}".partition("e")
    return f"{digits.removesuffix('.0')}e{int(exponent)}"


def _three_digits(value: float) -> str:
    if value == 0:
        return "0"
    decimals = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:.{decimals}f}" if abs(value) >= 0.01 else f"{value:.2g}"
