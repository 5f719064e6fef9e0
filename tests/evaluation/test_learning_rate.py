"""The learning rate for another network: which of the tried rates is selected."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch

from trajmatch.config import EvaluateConfig
from trajmatch.evaluation import Score, TestSet, TrainingSet, evaluate_sets
from trajmatch.evaluation.learning_rate import (
    LR_GRID,
    LR_NETWORKS,
    LR_ORIGIN,
    best_rate,
    selection_config,
    sets_over_rates,
)
from trajmatch.networks import NetworkSpec


def tried(lr: float, *values: float, diverged: int = 0) -> Score:
    """The score of networks at one rate."""
    known = {"method": "mtt", "model": "MLP", "ipc": 1, "protocol": "", "split": "val"}
    return Score.of(values, lr=lr, diverged=diverged, **known)


def test_the_best_rate_wins_wherever_it_stands():
    rates, means = (0.001, 0.01, 0.1), (40.0, 61.0, 55.0)
    for turn in range(3):
        order = [(turn + i) % 3 for i in range(3)]
        assert best_rate([tried(rates[i], means[i]) for i in order]) == 0.01


def test_the_mean_over_networks_decides():
    assert best_rate([tried(0.001, 10.0, 90.0), tried(0.01, 60.0, 60.0)]) == 0.01


def test_of_equally_good_rates_the_smallest_wins():
    scores = [tried(0.03, 61.0), tried(0.003, 61.0), tried(0.001, 60.0), tried(0.01, 61.0)]
    for order in (scores, scores[::-1]):
        assert best_rate(order) == 0.003


def test_a_rate_at_which_a_network_diverged_does_not_win():
    """A diverged network always says class 0: where most images are of that class, it scores."""
    scores = [tried(0.001, 55.0, 57.0), tried(0.01, 91.0, 60.0, diverged=1)]
    assert best_rate(scores) == 0.001
    scores.append(tried(0.03, 70.0, 70.0, diverged=2))
    assert best_rate(scores[1:]) == 0.01  # nothing better is there
    assert best_rate([tried(0.03, 60.0, diverged=2), tried(0.01, 60.0, diverged=2)]) == 0.01


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_score_that_is_no_number_does_not_win(place):
    scores = [tried(0.01, 40.0), tried(0.03, 30.0)]
    scores.insert(place, tried(0.001, math.nan))
    assert best_rate(scores) == 0.01


def test_a_network_that_really_diverges_does_not_win():
    """It says class 0 to all images and is right nine times of ten; the set teaches the reverse."""
    spec = NetworkSpec("convnet", 1, 2, 8, {"width": 4, "depth": 1})
    images = torch.randn(2, 1, 8, 8, generator=torch.manual_seed(0))
    training_set = TrainingSet(images, torch.tensor([1, 0]))
    sets = [dataclasses.replace(training_set, lr=lr) for lr in (1e30, 0.05)]
    config = EvaluateConfig(n=2, epochs=12, augment="none", workers=1)
    val = TestSet(images[[0] * 9 + [1]], torch.tensor([0] * 9 + [1]), "val")
    wild, sane = evaluate_sets(sets, spec, config, val)
    assert wild.mean == 90 > sane.mean
    assert best_rate([wild, sane]) == 0.05


def test_rates_are_tried_as_they_will_be_used():
    """At full length, with every setting of the evaluation but the number of networks."""
    config = EvaluateConfig(n=9, epochs=77, momentum=0.8, weight_decay=0.1, batch=3, augment="flip")
    assert selection_config(config) == dataclasses.replace(config, n=LR_NETWORKS)
    training_set = TrainingSet(torch.zeros(3, 1, 4, 4), torch.arange(3), 0.5, "mtt", 1)
    sets = sets_over_rates(training_set)
    assert [one.lr for one in sets] == list(LR_GRID) == sorted(set(LR_GRID))
    for one in sets:
        assert one.images is training_set.images
        assert one.labels is training_set.labels
        assert one.lr_origin not in ("", LR_ORIGIN)
