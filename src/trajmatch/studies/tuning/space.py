"""What a tuning searches: ranges of a method's settings, by the name of the setting."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from trajmatch.config import DistillConfig, require_range
from trajmatch.config.ranges import RANGES, RATE, numeric_fields
from trajmatch.errors import SettingError, suggest
from trajmatch.methods import Method
from trajmatch.pipeline.recipe import Recipe
from trajmatch.units import Real, number

LOOP = ("ema",)
"""Settings of the outer loop that may be searched; the others say how much is computed."""
_RATES = ("lr_img", "lr_label", "lr_lr", "lr_log_step_size", "step_size")
_CENTERS: Mapping[str, Real] = {
    "lr_img": 0.03,
    "lr_label": 1.0,
    "lr_lr": 1e-6,
    "lr_log_step_size": 0.02,
    "step_size": 0.01,
    "syn_steps": 20,
    "expert_epochs": 2,
}
"""What ranges lie around where a recipe leaves the setting to the run."""
_DECAYS = (0.0, 0.9, 0.99)


@dataclasses.dataclass(frozen=True)
class SearchRange:
    """The values of one setting that are searched.

    Examples:
        >>> print(SearchRange(0.01, 1.0, log=True)), print(SearchRange(choices=(0.0, 0.9)))
        0.01..1 (log)
        0|0.9
        (None, None)
        >>> 3 in SearchRange(1, 10, integer=True), 0.5 in SearchRange(choices=(0.0, 0.9))
        (True, False)
    """

    low: Real = 0.0
    high: Real = 0.0
    log: bool = False
    """Whether the logarithm is drawn from: for rates, whose factor matters."""
    integer: bool = False
    choices: tuple[Real, ...] = ()
    """Where there are any, one of them in the place of the interval."""

    def __contains__(self, value: Any) -> bool:
        if not isinstance(value, Real) or isinstance(value, bool):
            return False
        return value in self.choices if self.choices else self.low <= value <= self.high

    def __str__(self) -> str:
        if self.choices:
            return "|".join(map(number, self.choices))
        if self.low == self.high:
            return number(self.low)
        return f"{number(self.low)}..{number(self.high)}{' (log)' if self.log else ''}"

    @property
    def fixed(self) -> bool:
        """Whether there is but one value."""
        return len(self.choices) == 1 or (not self.choices and self.low == self.high)

    def to_json(self) -> dict[str, Any]:
        """Plain values: its choices, or its ends and what lies between."""
        if self.choices:
            return {"choices": list(self.choices)}
        return {"low": self.low, "high": self.high, "log": self.log, "integer": self.integer}


def space_of(recipe: Recipe, epochs: int | None, search: str = "") -> dict[str, SearchRange]:
    """What is searched for `recipe`: the usual settings of its method, and those of `search`.

    epochs: those the experts record; None where the method matches none.
    search: as `TuneConfig.search`.

    Raises SettingError for what `search` cannot mean, a value that is out of its setting's range,
    and segments of experts longer than these.

    Examples:
        >>> found = space_of(Recipe(), 50, "lr_img=1..10,ema=0")
        >>> print(found["lr_img"], found["ema"], found["expert_epochs"])
        1..10 (log) 0 1..4
    """
    given = _given(recipe, search)
    found = {
        name: default_range(name, setting_of(recipe, name), epochs)
        for name in _usual(recipe.method)
        if not (name == "lr_log_step_size" and "lr_lr" in given)
    }
    found |= given
    for name in ("expert_epochs", "max_start_epoch"):
        if name in found and epochs is not None:
            require_epochs(name, found[name], epochs)
    return found


def default_range(name: str, own: Real | None, epochs: int | None) -> SearchRange:
    """The range of a usual setting around the recipe's `own` value; None: one that the run chooses,
    and the range lies around a usual value.

    Rates: a tenth to ten times; `syn_steps`: half to twice; `expert_epochs`: 1 to twice, at least
    4; `max_start_epoch`: all that the `epochs` of the experts allow; `ema`: off, 0.9, 0.99.
    """
    if name == "ema":
        return SearchRange(choices=tuple(sorted({*_DECAYS, float(own or 0.0)})))
    most = epochs or RANGES["max_start_epoch"].most
    if name == "max_start_epoch":
        return SearchRange(1, most, integer=True)
    center = _CENTERS[name] if own is None else own
    if name == "expert_epochs":
        return SearchRange(1, min(most, max(4, 2 * int(center))), integer=True)
    if name == "syn_steps":
        return SearchRange(max(1, int(center) // 2), 2 * int(center), log=True, integer=True)
    limits = RANGES.get(name, RATE)
    low = max(center / 10, limits.least) if limits.least > 0 else center / 10
    return SearchRange(low, min(10 * center, limits.most), log=True)


def settings_of(values: Mapping[str, Real], recipe: Recipe, epochs: int | None) -> dict[str, Real]:
    """The settings that drawn `values` stand for: `max_start_epoch` is cut where segments would
    end after the last epoch of the experts.

    Examples:
        >>> settings_of({"expert_epochs": 4, "max_start_epoch": 20}, Recipe(), 20)
        {'expert_epochs': 4, 'max_start_epoch': 17}
    """
    found = dict(values)
    length = found.get("expert_epochs", setting_of(recipe, "expert_epochs"))
    if epochs is not None and length is not None and "max_start_epoch" in found:
        found["max_start_epoch"] = max(1, min(found["max_start_epoch"], epochs - int(length) + 1))
    return found


def setting_of(recipe: Recipe, name: str) -> Any:
    """A setting of the recipe's method or loop; None where neither has it."""
    return getattr(recipe.method, name, getattr(recipe.distill, name, None))


def require_epochs(name: str, found: SearchRange, epochs: int) -> None:
    """Refuse epochs that the experts do not have."""
    if max((*found.choices, found.high)) > epochs:
        raise SettingError(
            f"--search gives {name} {found} and the experts have {epochs} epochs; search up to "
            f"{epochs}"
        )


def _usual(method: Method) -> list[str]:
    """The settings that are searched where nothing else is said: those that the method has of the
    usual ones, and that matter with its other settings."""
    own = numeric_fields(type(method))
    names: list[str] = [
        name
        for name in ("lr_img", "syn_steps", "expert_epochs", "max_start_epoch", "step_size")
        if name in own and not (name == "lr_img" and method.labels_alone)
    ]
    if "lr_label" in own and method.learns_labels:
        names.append("lr_label")
    if "lr_lr" in own and method.learns_step_size:
        rate = getattr(method, "lr_lr", None)
        if rate:  # 0: the step size is not learned
            names.append("lr_lr")
        elif rate is None and "lr_log_step_size" in own:
            names.append("lr_log_step_size")
    return [*names, "ema"]


def _given(recipe: Recipe, search: str) -> dict[str, SearchRange]:
    """The ranges that `search` names."""
    own = numeric_fields(type(recipe.method))
    known = {**own, **{name: numeric_fields(DistillConfig)[name] for name in LOOP}}
    found: dict[str, SearchRange] = {}
    for part in filter(None, (part.strip() for part in search.split(","))):
        name, equals, text = (word.strip() for word in part.partition("="))
        name = name.replace("-", "_")
        if not equals or not text:
            raise SettingError(
                f"--search has '{part:.60}'; write NAME=LOW..HIGH, NAME=A|B|C or NAME=VALUE, "
                "separated by commas"
            )
        if name not in known:
            raise SettingError(_unknown(name, recipe.method, known))
        if name in found:
            raise SettingError(f"--search has {name} twice; give it once")
        found[name] = _range(name, text, known[name])
    return found


def _unknown(name: str, method: Method, known: Mapping[str, bool]) -> str:
    if name in numeric_fields(DistillConfig):
        flag = name.replace("_", "-")
        return f"--search has {name}, which all trials share; give it as --{flag}"
    return f"--search has '{name:.60}', no number among {method.name}'s settings; " + suggest(
        name, known
    )


def _range(name: str, text: str, integer: bool) -> SearchRange:
    """The range that `text` writes. Raises SettingError."""
    if ".." in text:
        low, high = (_number(name, word, integer) for word in _two(name, text))
        if low > high:
            raise SettingError(f"--search has {name}={text}, from high to low; turn it around")
        log = name in (*_RATES, "syn_steps") or (low > 0 and high / low > 10)
        return SearchRange(low, high, log=log and low > 0, integer=integer)
    values = [_number(name, word, integer) for word in text.split("|")]
    if len(set(values)) < len(values):
        raise SettingError(f"--search has {name}={text}, with a value that stands twice")
    return SearchRange(choices=tuple(values))


def _two(name: str, text: str) -> tuple[str, str]:
    low, _, high = text.partition("..")
    if not low.strip() or not high.strip():
        raise SettingError(f"--search has {name}={text}; write both ends, {name}=LOW..HIGH")
    return low, high


def _number(name: str, word: str, integer: bool) -> Real:
    """One value, in the range of its setting. Raises SettingError."""
    try:
        value: Real = int(word) if integer else float(word)
    except ValueError:
        what = "a whole number" if integer else "a number"
        raise SettingError(f"--search has '{word.strip():.40}' for {name}; give {what}") from None
    try:
        require_range(name, value, integer=integer)
    except SettingError as error:
        raise SettingError(f"--search: {error.text}") from None
    return value
