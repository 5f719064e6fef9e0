"""The learning rate for a network that a set was not made with, selected on validation images.

A learned step size fits the network it was learned with; for another network it can be ten times
too large or too small. The field's code trains every network at one rate, or uses other rates for
some networks without a stated procedure.

Observed with ten distilled digits of 8 pixels and 1 or 2 networks each: after 300 epochs VGG11 is
at chance at 0.01, at 83 % at 0.001 and at 87 % at 0.0003; AlexNet is at chance at 0.001 and at 73 %
at 0.01. At 0.1, MLP, LeNet and AlexNet are near chance after 1000 epochs and VGG11 after 300. With
a third of the epochs, rates were selected at which a network collapses later (LeNet at 0.1: the
best after 100 epochs, at chance after 300), so each rate is tried at full length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from trajmatch.config import EvaluateConfig
from trajmatch.errors import spelled
from trajmatch.evaluation.training_set import TrainingSet
from trajmatch.storage.results import Score

LR_GRID = (0.0003, 0.001, 0.003, 0.01, 0.03)
"""The rates that are tried, in ascending order. The field's is 0.01."""
LR_NETWORKS = 2
"""Fresh networks per rate, trained for as long as those that are tested."""
LR_ORIGIN = f"chosen on validation from {len(LR_GRID)}"
"""`Score.lr_origin` of a selected rate."""


def selection_config(config: EvaluateConfig) -> EvaluateConfig:
    """The settings for trying a rate: those of the evaluation, with `LR_NETWORKS` networks.

    Examples:
        >>> selection_config(EvaluateConfig(n=5, epochs=300)).n
        2
    """
    return dataclasses.replace(config, n=LR_NETWORKS)


def sets_over_rates(training_set: TrainingSet) -> list[TrainingSet]:
    """The set once per rate of `LR_GRID`."""
    return [dataclasses.replace(training_set, lr=lr, lr_origin="on trial") for lr in LR_GRID]


def best_rate(scores: Sequence[Score]) -> float:
    """The learning rate of the best score; of equal ones the smallest rate.

    A score with fewer diverged networks is better whatever its mean: a diverged network always
    predicts class 0, which scores well where most images are of that class.
    """
    best = max(scores, key=_merit)
    assert best.lr is not None
    return best.lr


def _merit(score: Score) -> tuple[int, float, float]:
    """Larger is better."""
    mean = -math.inf if math.isnan(score.mean) else score.mean
    return -score.diverged, mean, -(score.lr or 0.0)


def end_of_grid(lr: float) -> str | None:
    """A hint for a rate at an end of `LR_GRID`, where a better one may lie outside; else None.

    Examples:
        >>> end_of_grid(0.03)
        'lr 0.03 is the largest tried; lr= sets another'
        >>> end_of_grid(0.003) is None
        True
    """
    if lr not in (LR_GRID[0], LR_GRID[-1]):
        return None
    which = "smallest" if lr == LR_GRID[0] else "largest"
    return spelled(f"lr {lr:g} is the {which} tried; --lr sets another")
