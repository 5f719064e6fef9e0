"""What a study is: a question, variants of one base recipe that answer it, and a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from trajmatch.data import ImageDataset
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS
from trajmatch.methods.coresets import CORESETS
from trajmatch.pipeline.recipe import Recipe
from trajmatch.synthetic import SyntheticSet

Row = dict[str, Any]
"""One measured value as JSON has it: at (its place in the figure), mean, sd, n, values, and what
else the measure found."""


def is_own(source: str) -> bool:
    """Whether a source of images is a method or a coreset, rather than the folder of a set."""
    return source in METHODS or source in CORESETS


@dataclasses.dataclass(frozen=True)
class Variant:
    """The base recipe with other settings, and where its images come from."""

    name: str
    """Names its folder and its row; none begins with "experts", where libraries lie."""
    config: Recipe
    """Its experts are the first `config.experts.experts` of the library."""
    at: Mapping[str, Any]
    """Its place in the figure, by axis."""
    source: str = "mtt"
    """Where its images come from: a method that distills them, such as "mtt", a coreset that
    chooses real ones, such as "random"; anything else is the folder of a set."""
    choice: str = ""
    """Variants of one choice are settings of the same method: where there are several, validation
    images choose which is measured. Empty: measured in any case."""


@dataclasses.dataclass(frozen=True)
class Subject:
    """A variant's images for one seed, and all that a measure of them needs."""

    distilled: SyntheticSet
    """The images, distilled or chosen."""
    library: ExpertLibrary
    """All experts, including those that were not matched."""
    data: ImageDataset
    config: Recipe
    seed: int
    device: str


@dataclasses.dataclass(frozen=True)
class Study:
    """What is varied, what is measured and what is drawn."""

    name: str
    purpose: str
    """The title of its page."""
    rule: Callable[[Recipe], str]
    """What is held fixed, in a sentence, given the base recipe."""
    variants: Callable[[Recipe], list[Variant]]
    """Of a base recipe, whose `experts.experts` is the number of experts there will be."""
    figure: Literal["bars", "grid", "lines"]
    axes: Mapping[str, str]
    """Names in `Variant.at` (or in the measure's rows) and their labels in the figure, x first."""
    measure: Callable[[Subject], list[Row]]
    measured: str = "test accuracy, %"
    counted: str = "fresh networks"
    """What n counts within one cell."""
    page: Literal["study", "comparison"] = "study"
    """The kind of its page."""
    measure_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """Plain values that determine what `measure` finds; a cell measured with others is stale."""
    validate: Callable[[Subject], list[Row]] | None = None
    """A row with "validated", the score on validation images, of a variant that has others of its
    `choice` beside it, before one is chosen. None: the study has no choices."""
    relate: Callable[[list[Row], ExpertLibrary], None] | None = None
    """Adds to the cells, when all are measured, what follows from several of them."""

    def before_choice(self) -> Study:
        """The study that measures by `validate`."""
        assert self.validate is not None
        settings = {"scores": "validation"}
        return dataclasses.replace(self, measure=self.validate, measure_settings=settings)


def distilled_with(base: Recipe, **changes: Any) -> Recipe:
    """`base` with other settings of its method or of the outer loop."""
    return base.with_method(**changes)


def setting(base: Recipe, name: str) -> Any:
    """A setting of the base's method or outer loop, a customary one where it is calibrated. Raises
    SettingError where there is none."""
    for part in (base.method.assumed(), base.distill):
        if hasattr(part, name):
            return getattr(part, name)
    raise SettingError(
        f"this study varies {name}, which {base.method.name} does not have; use --method=mtt"
    )


def trained_with(base: Recipe, **changes: Any) -> Recipe:
    """`base` with other settings of the experts."""
    return dataclasses.replace(base, experts=dataclasses.replace(base.experts, **changes))


def reach(config: Recipe) -> int:
    """The last epoch of an expert that a distillation with `config` reads; at least 1."""
    return max(1, config.method.last_epoch)
