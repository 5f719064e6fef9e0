"""The learning rate for a network that a set was not made with: chosen on validation images.

A learned step size fits the network it was learned with; on another it can be ten times too large
or too small. The field's code trains every network at one rate, or names another for some of them
without saying how it was found.

Seen on ten distilled digits of 8 pixels, 1 or 2 networks each: after 300 epochs VGG11 is at chance
at 0.01, at 83 % at 0.001 and at 87 % at 0.0003, and AlexNet at chance at 0.001 and at 73 % at 0.01.
At 0.1 MLP, LeNet and AlexNet are near chance after 1000 epochs, VGG11 after 300. Trials of a third
of the epochs chose rates at which a network collapses later (LeNet at 0.1: the best after 100, at
chance after 300), so rates are tried at full length.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from trajmatch.config import EvaluateConfig
from trajmatch.evaluation.protocol import TrainingSet
from trajmatch.evaluation.score import Score

LR_GRID = (0.0003, 0.001, 0.003, 0.01, 0.03)
"""Rates that are tried, from small to large. The field's is 0.01."""
LR_NETWORKS = 2
"""Fresh networks that try each rate, trained for as long as those that are tested."""
LR_ORIGIN = f"chosen on validation from {len(LR_GRID)}"
"""How a score's protocol says it."""


def trial_config(config: EvaluateConfig) -> EvaluateConfig:
    """How a rate is tried: as it will be used."""
    return dataclasses.replace(config, n=LR_NETWORKS)


def trial_sets(small: TrainingSet) -> list[TrainingSet]:
    """The set once for each rate, to be judged side by side on validation images."""
    return [dataclasses.replace(small, lr=lr, lr_origin="on trial") for lr in LR_GRID]


def best_rate(scores: Sequence[Score]) -> float:
    """The rate of the best of `scores`; of equally good ones the smallest.

    A rate at which a network diverged is none to take: such a network always says class 0, which
    is a good score where most images are of that class. It comes after all at which fewer did.
    """
    best = max(scores, key=_merit)
    assert best.lr is not None
    return best.lr


def _merit(score: Score) -> tuple[int, float, float]:
    """Larger is better."""
    mean = -math.inf if math.isnan(score.mean) else score.mean
    return -score.diverged, mean, -(score.lr or 0.0)
