"""How the reports print numbers: signed, with as many decimals as the largest value beside them deserves."""

from __future__ import annotations

import math

MINUS = "\N{MINUS SIGN}"
NARROW_SPACE = "\N{NARROW NO-BREAK SPACE}"
SIGNIFICANT = 3
LEAST_DECIMALS = 2


def signed(value: float, scale: float | None = None) -> str:
    """Return ``value`` with its sign and a true minus, rounded to three significant digits of ``scale``.

    ``scale`` is the magnitude all values of one table share, so that their decimals line up; it defaults to
    ``|value|``. At least two decimals are kept below 1e4, so that small amounts beside large ones stay
    visible. Magnitudes outside 1e-4 .. 1e6 are printed in scientific notation.

    >>> signed(-0.5), signed(0.012, scale=1.0), signed(2.5e-12)
    ('−0.500', '+0.01', '+2.50e-12')
    """
    if not math.isfinite(value):
        return str(value)
    reference = abs(value) if scale is None else max(abs(scale), abs(value))
    if value == 0:
        return "0"
    if 1e-4 <= reference < 1e6:
        decimals = SIGNIFICANT - 1 - math.floor(math.log10(reference))
        text = f"{abs(value):.{max(decimals, LEAST_DECIMALS if reference < 1e4 else 0)}f}"
    else:
        text = f"{abs(value):.{SIGNIFICANT - 1}e}"
    if float(text) == 0:  # rounded away: a sign would claim a direction that cannot be seen
        return text
    return (MINUS if value < 0 else "+") + text


def share(value: float, whole: float) -> str:
    """Return ``value`` as a percentage of ``whole``, ``"–"`` where ``whole`` is zero.

    >>> share(1.0, 4.0)
    '25\u202f%'
    """
    if whole == 0 or not math.isfinite(value / whole):
        return "\N{EN DASH}"
    percent = 100 * value / whole
    text = f"{abs(percent):.0f}" if abs(percent) >= 10 else f"{abs(percent):.1f}"
    if float(text) == 0:
        text, percent = "0", 0.0
    return f"{MINUS if percent < 0 else ''}{text}{NARROW_SPACE}%"


def correlation(value: float) -> str:
    """A number between -1 and 1 with two decimals and a true minus.

    >>> correlation(-0.254), correlation(0.999)
    ('−0.25', '1.00')
    """
    text = f"{abs(value):.2f}"
    return f"{MINUS if value < 0 and float(text) else ''}{text}"


def statistic(value: float) -> str:
    """A statistic with three decimals and a true minus; three significant digits where it is large or very small.

    >>> statistic(0.8315), statistic(-1234.5), statistic(2.5e-5)
    ('0.832', '−1.23e+03', '2.50e-05')
    """
    if not math.isfinite(value):
        return "\N{EN DASH}"
    size = abs(value)
    text = f"{size:.3f}" if size == 0 or 1e-2 <= size < 1e3 else f"{size:.2e}"
    return f"{MINUS if value < 0 else ''}{text}"
