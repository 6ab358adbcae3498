"""Numbers as a reader sees them: one place, so that page, table and sentence agree."""

from __future__ import annotations

NOT_RUN = "not run"
UNDEFINED = "undefined"
ARROWS = {"lower": "↓", "higher": "↑"}


def percent(value: float | None, missing: str = NOT_RUN) -> str:
    """Return a share as per cent with one decimal: 0.2134 -> "21.3 %"."""
    return missing if value is None else f"{_unsigned_zero(100 * value, 1):.1f} %"


def points(value: float | None, missing: str = NOT_RUN) -> str:
    """Return a difference of shares in percentage points with its sign: "+21.3"."""
    if value is None:
        return missing
    shown = _unsigned_zero(100 * value, 1)
    return f"{shown:+.1f}".replace("-", "−") if shown else "0.0"


def points_interval(low: float | None, high: float | None) -> str:
    """Return "[−1.2, +4.0]", or nothing without an interval."""
    return "" if low is None or high is None else f"[{points(low)}, {points(high)}]"


def percent_interval(low: float | None, high: float | None) -> str:
    """Return "[1.2, 4.0]" in per cent, or nothing without an interval."""
    if low is None or high is None:
        return ""
    return f"[{_unsigned_zero(100 * low, 1):.1f}, {_unsigned_zero(100 * high, 1):.1f}]"


def number(value: float | int | bool | str | None, missing: str = "–") -> str:
    """Return any cell of a table: integers whole, floats to four figures, small ones as 2.5e-4."""
    if value is None:
        return missing
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, (int, str)):
        return str(value)
    if value != 0 and (abs(value) < 1e-2 or abs(value) >= 1e5):
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}".replace("-", "−")
    return f"{value:.4g}".replace("-", "−")


def with_arrow(title: str, better: str) -> str:
    """Return a column's title with its good direction: "utility", "higher" -> "utility ↑"."""
    return f"{title} {ARROWS[better]}" if better else title


def plural(count: int, noun: str) -> str:
    """Return "1 seed" or "3 seeds"."""
    return f"{count} {noun}" + ("" if count == 1 else "s")


def _unsigned_zero(value: float, digits: int) -> float:
    # A difference of -0.0004 points would print as "-0.0".
    rounded = round(value, digits)
    return 0.0 if rounded == 0 else rounded
