"""Numbers, percentages, durations, bytes and long names as text, for tables, pages and messages;
and a duration from text."""

from __future__ import annotations

import math
import re

from trajmatch.errors import SettingError

Real = int | float
"""beartype does not accept an int where a float is annotated; both are fine here."""
NBSP = "\N{NO-BREAK SPACE}"


def number(value: Real, digits: int = 3) -> str:
    """`value` to `digits` significant digits, without trailing zeros: 0.0107, 88.7, 1,297."""
    if not math.isfinite(value):
        return "not finite"
    if value != 0 and not 1e-4 <= abs(value) < 1e7:
        return f"{value:.{digits - 1}e}".replace("e-0", "e-").replace("e+0", "e")
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    text = f"{value:,.{decimals}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def shortened(text: str, most: int) -> str:
    """`text`, of which at most `most` letters are left.

    Examples:
        >>> shortened("Acanthurus", 40), shortened("Acanthurus coeruleus", 12)
        ('Acanthurus', 'Acanthurus…')
    """
    return text if len(text) <= most else f"{text[: max(1, most - 1)].rstrip()}…"


def percent(mean: Real, sd: Real | None = None) -> str:
    """An accuracy in percent with one decimal, `88.7 ± 1.2`, with no-break spaces."""
    return f"{mean:.1f}" if sd is None else f"{mean:.1f}{NBSP}±{NBSP}{sd:.1f}"


def duration(seconds: Real) -> str:
    """A measured time: `0.31 s`, `42 s`, `4 min 12 s`, `2 h 5 min`."""
    if seconds < 10:
        return f"{number(seconds, 2)} s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded} s"
    if rounded < 3600:
        return f"{rounded // 60} min {rounded % 60} s"
    return f"{rounded // 3600:,} h {rounded % 3600 // 60} min"


def rough_duration(seconds: Real) -> str:
    """A predicted time, in its one or two largest units: `42 s`, `5 min`, `1 h 12 min`,
    `2 d 3 h`."""
    rounded = round(seconds)
    if rounded < 90:
        return f"{rounded} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(hours, 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


_SECONDS = {"d": 86400.0, "h": 3600.0, "m": 60.0, "min": 60.0, "s": 1.0}
_PART = r"(\d+(?:\.\d+)?)\s*(d|h|min|m|s)\s*"


def seconds_of(text: str) -> float:
    """A duration as a person writes it, in seconds: `90s`, `45m` or `45min`, `2h`, `1h30m`, `1.5d`.

    Raises SettingError for another form, a number without a unit among them, and for no time.

    Examples:
        >>> seconds_of("90s"), seconds_of("1h30m"), seconds_of("0.5h")
        (90.0, 5400.0, 1800.0)
    """
    if re.fullmatch(rf"\s*(?:{_PART})+", text) is None:
        raise SettingError(f"'{text:.40}' is no length of time; write 90s, 45m, 2h or 1h30m")
    seconds = sum(float(count) * _SECONDS[unit] for count, unit in re.findall(_PART, text))
    if not 0 < seconds < math.inf:
        raise SettingError(f"'{text:.40}' is no time to work in; give at least a second, 1s")
    return seconds


def byte_size(count: int) -> str:
    """Bytes in decimal units: `3.1 MB`, `12 GB`."""
    value, unit = (count / 1e9, "GB") if count >= 1e9 else (count / 1e6, "MB")
    return f"{value:.2g} {unit}" if value < 10 else f"{value:,.0f} {unit}"
