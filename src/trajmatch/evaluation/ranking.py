"""DD-Ranking's two scores: what of an accuracy is owed to the images themselves.

Source: Li et al., DD-Ranking: Rethinking the Evaluation of Dataset Distillation, arXiv 2505.13300.
Labels that a trained network wrote, and strong augmentation, raise the accuracy of any images,
random ones among them. Both scores therefore count what a set gains over random images that are
treated alike, and one also what it still lacks of all the data. 100 is the most there could be, 0
the least; a set that is as good as random images has an ARS of 26.9.
"""

from __future__ import annotations

import math

WEIGHT = 0.5
"""w of both scores, the paper's."""


def label_robust(*, full: float, hard: float, own: float, random: float) -> float:
    """LRS: w (own - random) - (1 - w) (full - hard), brought to 0 to 100.

    Accuracies in percent. full: of networks trained on all the data; hard: of ones trained on the
    set with class labels; own: with the labels the set has; random: on random images with labels of
    that kind.
    """
    return _share(WEIGHT * (own - random) - (1 - WEIGHT) * (full - hard))


def augmentation_robust(*, own: float, random: float, plain: float, plain_random: float) -> float:
    """ARS: w (own - random) + (1 - w) (plain - plain_random), brought to 0 to 100.

    Accuracies in percent, of networks trained on the set and on random images with labels of its
    kind: with augmentation, and (plain) without.
    """
    return _share(WEIGHT * (own - random) + (1 - WEIGHT) * (plain - plain_random))


def _share(points: float) -> float:
    """Points between -100 and 100 on a scale from 0 to 100: (e^x - 1/e) / (e - 1/e)."""
    return 100 * (math.exp(points / 100) - math.exp(-1)) / (math.e - math.exp(-1))
