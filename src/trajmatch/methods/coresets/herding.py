"""Herding: images chosen one after another so that their mean stays near the class mean.

Max Welling, Herding dynamical weights to learn, ICML 2009; in the form without replacement of
Rebuffi et al., iCaRL, CVPR 2017, in which the field's tables report it.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch.methods.coresets.base import Coreset, Requirement, class_members
from trajmatch.types import Float, Int, Tensor


@dataclasses.dataclass(frozen=True)
class Herding(Coreset):
    """Image t minimizes |mean of the class - mean of the t images chosen|, in feature space.

    Nothing is drawn at random. Cost: one product of the class's features with a vector per image,
    in float64.

    Examples:
        >>> features, labels = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 0])
        >>> Herding().choose(features, labels, 1, torch.Generator())  # the mean is 4
        tensor([1])
    """

    name: ClassVar[str] = "herding"
    requires: ClassVar[Requirement] = "features"

    def choose(
        self,
        statistics: Float[Tensor, "n features"],
        labels: Int[Tensor, "n"],
        ipc: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "chosen"]:
        """Indices of `ipc` images of each class, in the order in which they are chosen."""
        return torch.cat(
            [members[_herd(statistics[members].double(), ipc)] for members in class_members(labels)]
        )


def _herd(features: Float[Tensor, "n features"], count: int) -> Int[Tensor, "count"]:
    """The greedy order; of equally good images the one with the lowest index comes first."""
    # Relative to the class mean: far from the origin, |sum of picks + candidate| would lose digits.
    features = features - features.mean(0)
    squares, total = features.square().sum(1), torch.zeros_like(features[0])
    picks = torch.zeros(count, dtype=torch.int64)
    taken = torch.zeros(len(features), dtype=torch.bool)
    # Products of equal images may differ by rounding.
    slack = 1e-12 * float(squares.max())
    for t in range(count):
        length = squares + 2 * (features @ total)  # |total + x|^2 without its constant |total|^2
        length[taken] = torch.inf
        pick = int((length <= length.min() + slack * (t + 1)).nonzero()[0])
        total += features[pick]
        picks[t], taken[pick] = pick, True
    return picks
