"""Durations as a person writes them."""

from __future__ import annotations

import pytest

from trajmatch.errors import SettingError
from trajmatch.units import seconds_of


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90.0), ("45m", 2700.0), ("45 min", 2700.0), ("2h", 7200.0), (" 1h30m ", 5400.0),
        ("1.5d", 129600.0), ("1h 30m 5s", 5405.0),
    ],
)  # fmt: skip
def test_durations(text: str, seconds: float) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "90", "2x", "h", "-1h", "1h-5m", "1e3s", "inf", "0s", "0.0h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(SettingError, match=r"write 90s, 45m, 2h or 1h30m|no time to work in"):
        seconds_of(text)
