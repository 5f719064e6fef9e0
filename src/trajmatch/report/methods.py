"""Facts about methods by name: titles, objectives, and which images are real.

No other file of the report uses the registry of methods or compares names of methods.
"""

from __future__ import annotations

from dataclasses import dataclass

from trajmatch.errors import SettingError
from trajmatch.methods import METHODS, Method
from trajmatch.methods.coresets import CORESETS
from trajmatch.storage.results import CEILING, EXPERTS, Score

BASELINES = {
    "random": "picked at random",
    "herding": "picked by herding",
}
"""Coresets that distilled images are compared with -> how a sentence says so."""
ALL_IMAGES = (EXPERTS, CEILING)
"""Scores of networks that were trained on all training images."""
COMPARED = (*BASELINES, EXPERTS)
"""The scores that a complete run has beside its own, in their order on the page."""
_TITLES = {
    "random": "random choice",
    EXPERTS: "experts, on all training images",
    CEILING: "all training images",
}


@dataclass(frozen=True)
class MethodFacts:
    """What a page says of a method; the defaults are for methods that are not known here."""

    objective: str = ""
    """What its loss is, in a few words."""
    needs_experts: bool = True
    labels_alone: bool = False
    """Whether it learns labels for real images, which stay as they are."""
    starts_at_one: bool = False
    """Whether its loss is a distance in units of the distance at the start."""


def method_facts(name: str) -> MethodFacts:
    """Of a method that may be unknown, such as one of another package."""
    found = _method(name)
    if found is None:
        return MethodFacts()
    return MethodFacts(
        objective=found.objective,
        needs_experts=found.needs_experts,
        labels_alone=found.labels_alone,
        starts_at_one=found.normalized,
    )


def method_title(name: str) -> str:
    """What a method is called in the heading of a page; its name where it is unknown."""
    found = _method(name)
    return _TITLES.get(name, name) if found is None else found.title


def is_chosen(name: str) -> bool:
    """Whether the images of `name` are real ones: a coreset, or all of them."""
    return name in CORESETS or name in ALL_IMAGES


def trained_on(score: Score) -> str:
    """What the networks of a score were trained on; experts by their name and epochs."""
    name = score.method
    if name in ALL_IMAGES:
        return score.label
    if is_chosen(name):
        return f"real images, {name}"
    known = _method(name) is not None
    return f"distilled by {name.upper() if known else name or 'an unnamed method'}"


def _method(name: str) -> type[Method] | None:
    """None for a method that is unknown, or whose package cannot be imported here."""
    try:
        return METHODS[name]
    except (KeyError, SettingError):
        return None
