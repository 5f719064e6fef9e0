"""The two scores of DD-Ranking: how much of an accuracy is due to the images themselves.

Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, arXiv 2505.13300.
Soft labels of a trained network and strong augmentation raise the accuracy of any images, random
ones included. Both scores therefore measure the gain over random images under the same treatment;
LRS also measures the gap to training on all data. Both run from 0 to 100; a set no better than
random images has an ARS of 26.9.
"""

from __future__ import annotations

import math

WEIGHT = 0.5
"""w in both scores, the paper's."""


def label_robust(*, full: float, hard: float, own: float, random: float) -> float:
    """LRS: w (own - random) - (1 - w) (full - hard), mapped to 0 to 100.

    Accuracies in percent. full: of networks trained on all the data; hard: of networks trained on
    the set with class labels; own: with the set's own labels; random: on random images with labels
    of the same kind.

    Examples:
        >>> round(label_robust(full=85.0, hard=50.0, own=60.0, random=30.0), 1)
        25.8
    """
    return _share(WEIGHT * (own - random) - (1 - WEIGHT) * (full - hard))


def augmentation_robust(*, own: float, random: float, plain: float, plain_random: float) -> float:
    """ARS: w (own - random) + (1 - w) (plain - plain_random), mapped to 0 to 100.

    Accuracies in percent of networks trained on the set and on random images with labels of the
    same kind: own and random with augmentation, plain and plain_random without.

    Examples:
        >>> round(augmentation_robust(own=30.0, random=30.0, plain=20.0, plain_random=20.0), 1)
        26.9
    """
    return _share(WEIGHT * (own - random) + (1 - WEIGHT) * (plain - plain_random))


def _share(points: float) -> float:
    """Points between -100 and 100 on a scale from 0 to 100: (e^x - 1/e) / (e - 1/e)."""
    return 100 * (math.exp(points / 100) - math.exp(-1)) / (math.e - math.exp(-1))
