"""How all figures look: colors, sizes, round ticks, and marks for the page's style sheet.

Sizes are in points; on the page a point is a CSS pixel of a figure at its natural size.
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from trajmatch.errors import MissingExtraError
from trajmatch.units import Real, shortened

ACCENT, WARM, INK, SOFT = "#00697a", "#a94800", "#14181c", "#525c65"
RULE, BACKGROUND = "#d8dee2", "#ffffff"
VARIABLES = {
    ACCENT: "--accent", WARM: "--warm", INK: "--ink", SOFT: "--soft", RULE: "--rule",
    BACKGROUND: "--ground",
}  # fmt: skip
"""Colors of a paper -> the page's CSS variables, which differ in light and dark."""

KINDS = (
    (ACCENT, "o", "-"),
    (WARM, "s", (0, (6, 3))),
    (SOFT, "D", (0, (2, 3))),
    (INK, "^", "-"),
    (INK, "v", (0, (8, 3, 2, 3))),
)
"""Color, mark and dashes of one series after another."""

SIZE, FINE = 11, 10
"""Letters of ticks and axes, and of notes within a figure."""
LETTER = 0.6
"""Mean width of a letter, in units of its size."""


@dataclass(frozen=True)
class Layout:
    """The size of a figure, and where its frame lies from the left and from the top."""

    width: Real
    height: Real
    left: Real
    right: Real
    top: Real
    bottom: Real


@contextlib.contextmanager
def drawing() -> Iterator[None]:
    """Matplotlib with its own defaults, whatever the user's settings, and with text as text.

    Raises MissingExtraError without matplotlib.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise MissingExtraError("a figure", "report") from error
    own: dict[str, Any] = {
        "svg.fonttype": "none",
        "svg.hashsalt": "trajmatch",
        "text.parse_math": False,  # a $ in a name is a $
        "font.size": SIZE,
        "path.simplify": False,
        "axes.unicode_minus": True,
    }
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        matplotlib.rcdefaults()
        parameters: Any = matplotlib.rcParams
        parameters.update(own)
        yield


def clear(axes: Any, size: Real = SIZE) -> None:
    """Axes without frame and tick marks, with labels of `size` in the soft color."""
    axes.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.tick_params(length=0, labelsize=size, labelcolor=SOFT, pad=6)
    axes.minorticks_off()
    axes.set_axisbelow(True)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=SOFT, fontsize=size)


def baseline(axes: Any, words: str) -> None:
    """The line of the x axis and its name."""
    axes.spines["bottom"].set(visible=True, color=SOFT, linewidth=1)
    axes.set_xlabel(shown(words), labelpad=2)


def y_grid(axes: Any, low: Real, high: Real) -> None:
    """Horizontal lines at round values between `low` and `high`, which become the limits."""
    axes.set_ylim(low, high)
    marks = ticks(low, high)
    axes.set_yticks([value for value, _ in marks], [text for _, text in marks])
    axes.grid(axis="y", color=RULE, linewidth=1)


def tag(artist: Any, kind: str, title: str = "") -> Any:
    """Mark `artist` for the page: its class there, and what a pointer over it is shown."""
    artist.set_gid(f"{kind}|{shown(title)}")
    return artist


def shown(value: Any, most: int | None = None) -> str:
    """`value` as a text that any font and XML can hold, of at most `most` letters."""
    text = "".join(one if _is_plain(one) else "\N{REPLACEMENT CHARACTER}" for one in str(value))
    return text if most is None else shortened(text, most)


def spread(axes: Any, across: Real, mean: Real, sd: Real | None, color: str) -> None:
    """A bar of one standard deviation up and down; nothing for a sd of None or 0."""
    if sd:
        bar = {"color": color, "ecolor": color, "elinewidth": 1, "capthick": 1}
        axes.errorbar([across], [mean], yerr=[sd], fmt="none", capsize=3, alpha=0.7, **bar)


def ticks(low: Real, high: Real, integers: bool = False) -> list[tuple[Real, str]]:
    """Two to six round values within [low, high], and how to write them.

    Examples:
        >>> ticks(79, 91)
        [(80.0, '80'), (85.0, '85'), (90.0, '90')]
    """
    rough = (high - low) / 5
    power = math.floor(math.log10(rough))
    step = next(m * 10.0**power for m in (1, 2, 5, 10) if m * 10.0**power >= rough * 0.999)
    if integers:
        step = max(1.0, float(round(step)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    values = [k * step for k in range(first, last + 1)]
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    largest = max(map(abs, values), default=0.0)
    if decimals > 5 or largest >= 1e6:
        exponents = [math.floor(math.log10(v) + 1e-9) for v in (largest or step, step)]
        places = max(0, exponents[0] - exponents[1])
        return [(value, f"{value:.{places}e}" if value else "0") for value in values]
    return [(value, f"{value:,.{decimals}f}") for value in values]


def _is_plain(letter: str) -> bool:
    """Whether XML can hold it: no control character, no half of a surrogate pair."""
    code = ord(letter)
    return code >= 32 and not (0x7F <= code < 0xA0 or 0xD800 <= code < 0xE000 or code in _NONE)


_NONE = (0xFFFE, 0xFFFF)
