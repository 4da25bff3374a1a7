"""Format numbers, intervals and durations."""

import math
from collections.abc import Collection, Iterable

from triptych.run.parsing import Estimate

ALPHA = 1 - 0.95  # level of the tests; defined here, as commands import this without numpy


def format_number(x: float, sign: bool = False, decimals: int = 3) -> str:
    """Format with three decimals, or more if those would all be zeros; a dash for NaN."""
    if math.isnan(x):
        return "–"
    size = abs(x)
    if size == math.inf:
        text = "∞"
    elif 0 < size < 1e-6 or size >= 1e7:
        text = f"{size:.1e}"
    else:
        text = f"{size:.{max(decimals, _decimals(size))}f}"
    if x < 0:
        return f"−{text}"
    return f"+{text}" if sign and 0 < x < math.inf else text


def four_digits(x: float) -> str:
    """Format with four significant digits."""
    return f"{x:.4g}".replace("-", "−")


def common_decimals(errors: Iterable[float]) -> int:
    """Return the number of decimals that shows each of these errors, as for a table's column."""
    return max((_error_decimals(abs(error)) for error in errors), default=3)


def plus_minus(figure: Estimate, decimals: int = 0) -> str:
    """Format mean and standard error with equal decimals: "1.902 ± 0.006", "1.90023 ± 0.00061".

    `decimals`: the minimum.
    """
    digits = max(decimals, _error_decimals(figure.stderr))
    mean = format_number(figure.mean, decimals=digits)
    if math.isnan(figure.stderr):
        return mean
    return f"{mean} ± {format_number(figure.stderr, decimals=digits)}"


def with_interval(
    mean: float, low: float, high: float, sign: bool = False, decimals: int = 0
) -> str:
    """Format "0.120 [0.100, 0.140]" with the decimals of half the width; no interval for NaN."""
    digits = max(decimals, _error_decimals((high - low) / 2))
    if math.isnan(low):
        return format_number(mean, sign, digits)
    start, end = (format_number(x, decimals=digits) for x in (low, high))
    return f"{format_number(mean, sign, digits)} [{start}, {end}]"


def _error_decimals(error: float) -> int:
    """Return the number of decimals for an error; three for one that is only rounding."""
    return _decimals(error) if error > 1e-6 else 3


def _decimals(size: float) -> int:
    """Return the number of decimals: three, or as many as show two digits of a smaller number."""
    if not math.isfinite(size) or size >= 0.000995 or size == 0:  # at least 0.001 after rounding
        return 3
    return 1 - math.floor(math.log10(size))


def p_value(p: float) -> str:
    """Format p with two significant digits; "<0.0001" below that, a dash for NaN.

    A p above the level of the tests gets enough digits to show that: "0.0501".
    """
    if math.isnan(p):
        return "–"
    if p < 1e-4:
        return "<0.0001"
    if p >= 0.995:
        return "1"
    digits = 2
    while float(f"{p:.{digits}g}") <= ALPHA < p:
        digits += 1
    return f"{p:.{digits}g}"


def three_digits(x: float) -> str:
    """Format with three significant digits, 1,000 and more in full: "0.0123", "12.3", "1,070"."""
    text = f"{x:.3g}"
    return text if x < 999.5 else f"{float(text):,.0f}"


def count_noun(n: int, noun: str) -> str:
    """Format a count with its noun: "1 run", "3 runs"."""
    return f"{n} {noun if n == 1 else noun + 's'}"


def duration(seconds: float) -> str:
    """Format seconds: "41 s", "3 min 20 s", "2 h 05 min", "5,810 h"; a dash unless finite."""
    if not math.isfinite(seconds):
        return "–"
    whole = round(seconds)
    if seconds < 10:
        return f"{seconds:.1f} s"
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 360_000:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{three_digits(whole / 3600)} h"


def shorten(text: str, max_length: int = 30) -> str:
    """Shorten `text` to `max_length` letters by an ellipsis in its middle."""
    return text if len(text) <= max_length else text[: max_length - 9] + "…" + text[-8:]


def join_names(names: Collection[str]) -> str:
    """Join names: "a", "a and b", "a, b and c"."""
    *first, last = names or [""]
    return f"{', '.join(first)} and {last}" if first else last
