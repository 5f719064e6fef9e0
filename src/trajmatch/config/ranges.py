"""Ranges of numeric settings: one for each name, whichever class has a setting of that name.

Every dataclass of settings calls `check_ranges(self)` when it is constructed, so that a number is
refused where it is read: from a command line, from TOML, or in Python. Upper bounds are far beyond
what is of use; they refuse what would overflow or never end. Whether there is memory for values in
their range is checked when the data are known (`trajmatch.pipeline.memory_needs`).
"""

from __future__ import annotations

import dataclasses
import functools
import numbers
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from trajmatch.errors import SettingError


@dataclasses.dataclass(frozen=True)
class Range:
    """An interval of numbers; NaN and infinities are in none.

    Examples:
        >>> print(Range(0, 1, below=True))
        at least 0 and below 1
        >>> 1.0 in Range(0, 1, below=True), float("nan") in Range(0, 1)
        (False, False)
    """

    least: int | float
    most: int | float
    above: bool = False
    """Whether `least` itself is out of range."""
    below: bool = False
    """Whether `most` itself is out of range."""

    def __contains__(self, value: Any) -> bool:
        low = self.least < value if self.above else self.least <= value
        return bool(low and (value < self.most if self.below else value <= self.most))

    def __str__(self) -> str:
        low, high = "above" if self.above else "at least", "below" if self.below else "at most"
        return f"{low} {shown(self.least)} and {high} {shown(self.most)}"


COUNT = Range(1, 10**9)
FEW = Range(1, 10**5)
"""Things of which each is a task or an entry of a list."""
RATE = Range(0, 10**6, above=True)
SHARE = Range(0, 1)
DECAY = Range(0, 1, below=True)
WEIGHT = Range(0, 10**6)
EPOCHS = Range(1, 10**6)
NETWORK = Range(1, 2**24)
PROCESSES = Range(1, 1024)
TINY = Range(0, 1, above=True)

RANGES = {
    # data and network
    "size": Range(1, 16384),
    "val_fraction": Range(0, 1, above=True, below=True),
    "depth": Range(1, 1000),
    "width": Range(1, 2**16),
    "channels": NETWORK,
    "classes": NETWORK,
    "heads": NETWORK,
    "patch": NETWORK,
    # training
    "experts": FEW,
    "epochs": EPOCHS,
    "batch": COUNT,
    "steps_per_epoch": COUNT,
    "lr": Range(0, 10**20, above=True),  # one that diverges fails in training, with a line
    "momentum": DECAY,
    "weight_decay": WEIGHT,
    "n": FEW,
    # the outer loop
    "ipc": Range(1, 10**7),
    "iterations": COUNT,
    "ema": DECAY,
    "eval_every": COUNT,
    "eval_networks": FEW,
    "checkpoint_every": COUNT,
    # methods
    "lr_img": RATE,
    "lr_label": RATE,
    "lr_lr": WEIGHT,
    "lr_log_step_size": Range(0, 1),
    "lr_net": RATE,
    "step_size": Range(1e-9, 10**6),  # its square divides lr_lr
    "syn_steps": FEW,
    "batch_syn": COUNT,
    "batch_real": COUNT,
    "batch_query": COUNT,
    "bptt_steps": FEW,
    "segments": FEW,
    "expert_epochs": EPOCHS,
    "max_start_epoch": EPOCHS,
    "skip_loss": Range(0.01, 10**12),  # below that no update would ever be skipped
    "canvas": Range(1, 16384),
    "samples": Range(1, 10**4),
    "outer_loop": COUNT,
    "inner_loop": Range(1, 10**4),
    "max_epochs": Range(1, 10**4),
    "accuracies": Range(1, 10**4),
    "settled": Range(0, 100),
    "moved": Range(0, 100),
    "discrimination_weight": WEIGHT,
    "numbers_at_a_time": Range(1, 10**12),
    # optimizers and schedules
    "betas": DECAY,
    "eps": TINY,
    "end": SHARE,
    "to": TINY,
    "at": TINY,
    # a command
    "seed": Range(0, 2**63 - 1),
    "seeds": Range(1, 1000),
    "workers": PROCESSES,
    "threads": PROCESSES,
    "accuracy": Range(0, 100),
    "ceiling_epochs": EPOCHS,
    "fraction": Range(0, 1, above=True),
    "number": Range(0, 10**6),
    "trials": Range(1, 10**5),
}
"""By the name of the setting."""
ANY = Range(-(2**63), 2**63 - 1)
"""For a number of another name: finite, and a whole number that 64 bits hold."""


def check_ranges(settings: Any) -> None:
    """Check every field of a dataclass whose type is a number, a tuple of numbers, or either of
    these or None.

    Raises SettingError with the field's name, its value and the range.
    """
    kind: Any = type(settings)
    for name, integer in numeric_fields(kind).items():
        if (value := getattr(settings, name)) is not None:
            require_range(name, value, integer=integer)


def require_range(name: str, value: Any, *, integer: bool = True) -> None:
    """Refuse a number, or a tuple of some, outside of the range of its name.

    integer: whether it must be a whole number.

    Raises SettingError with the name, the value and the range.

    Examples:
        >>> require_range("epochs", 50)
    """
    limits, kind = RANGES.get(name, ANY), numbers.Integral if integer else numbers.Real
    for one in value if isinstance(value, tuple) else (value,):
        if not isinstance(one, kind) or isinstance(one, bool):
            what = "a whole number" if integer else "a number"
            raise SettingError(f"{name} is {shown(value)}; it must be {what}, {limits}")
        if one not in limits:
            raise SettingError(f"{name} is {shown(value)}; it must be {limits}")


@functools.cache
def numeric_fields(kind: Any) -> dict[str, bool]:
    """The fields of a dataclass that hold numbers, and whether these are whole ones."""
    hints = get_type_hints(kind)
    found = {}
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        plain = get_origin(hint) in (None, Union, UnionType, tuple)
        types = {hint, *get_args(hint)} if plain else set()
        if types & {int, float}:
            found[field.name] = float not in types
    return found


def shown(value: Any) -> str:
    """A value in a message, cut where it has very many digits."""
    if type(value) is int and value.bit_length() > 120:  # very long ones cannot become text
        return f"a whole number of {value.bit_length()} bits"
    text = f"{value!r}" if isinstance(value, str) else f"{value}"
    return text if len(text) <= 40 else f"{text[:37]}..."
