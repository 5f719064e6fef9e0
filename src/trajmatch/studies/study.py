"""What a study is: a question, variants of one base config that answer it, and a figure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

from trajmatch.config import RunConfig
from trajmatch.data import ImageDataset
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import METHODS
from trajmatch.methods.coresets import CORESETS
from trajmatch.synthetic import SyntheticSet

Row = dict[str, Any]
"""One measured value as JSON has it: at (its place in the figure), mean, sd, n, values, and what
else the measure found."""


def is_own(source: str) -> bool:
    """Whether a source of images is a method of ours, rather than the folder of a set."""
    return source in METHODS or source in CORESETS


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way to set the base config."""

    name: str
    """Names its folder and its row; none begins with "experts", where libraries lie."""
    config: RunConfig
    """Its experts are the first `config.experts.experts` of the library."""
    at: Mapping[str, Any]
    """Its place in the figure, by axis."""
    source: str = "mtt"
    """Where its images come from: a method that makes them, such as "mtt", or chooses real ones,
    such as "random"; anything else is the folder of a set."""


@dataclasses.dataclass(frozen=True)
class Made:
    """A variant's images for one seed, and all that a measure needs."""

    small: SyntheticSet
    library: ExpertLibrary
    """All experts there are, beyond those the images may have been matched to as well."""
    data: ImageDataset
    config: RunConfig
    seed: int
    device: str


@dataclasses.dataclass(frozen=True)
class Study:
    """What is asked, what is varied and what is drawn."""

    question: str
    rule: Callable[[RunConfig], str]
    """What is held fixed, in a sentence, given the base config."""
    variants: Callable[[RunConfig], list[Variant]]
    """Of a base config, whose `experts.experts` is the number of experts there will be."""
    figure: Literal["bars", "grid", "lines"]
    axes: Mapping[str, str]
    """Names in `Variant.at` (or in the measure's rows) and how the figure calls them, x first."""
    measure: Callable[[Made], list[Row]]
    measured: str = "test accuracy, %"
    counted: str = "fresh networks"
    """What n counts within one cell."""
    page: Literal["study", "comparison"] = "study"
    """How it is told."""
    asks: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """What else determines what `measure` finds, as JSON has it."""
    relate: Callable[[list[Row], ExpertLibrary], None] | None = None
    """Adds to the cells, when all are known, what follows from several of them."""


def distilled_with(base: RunConfig, **changes: Any) -> RunConfig:
    """`base` with other settings of the distillation."""
    return dataclasses.replace(base, distill=dataclasses.replace(base.distill, **changes))


def trained_with(base: RunConfig, **changes: Any) -> RunConfig:
    """`base` with other settings of the experts."""
    return dataclasses.replace(base, experts=dataclasses.replace(base.experts, **changes))


def reach(config: RunConfig) -> int:
    """The last epoch of an expert that a distillation with `config` reads."""
    return config.distill.max_start_epoch - 1 + config.distill.expert_epochs
