"""k-center: images spread out so that every image of the class is near a chosen one.

Ozan Sener, Silvio Savarese, Active learning for convolutional neural networks: a core-set approach,
ICLR 2018 (algorithm 1, the greedy one). Whatever it starts from, the largest distance is at most
twice the smallest that any choice of as many images reaches.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch.methods.coresets.base import Coreset, Requirement, class_members
from trajmatch.types import Float, Int, Tensor


@dataclasses.dataclass(frozen=True)
class KCenter(Coreset):
    """Each image is the farthest from those chosen before it, in feature space.

    The first is the image nearest the class mean: the paper starts from images that are labeled
    already, which there are none of here, and with one image per class that is a typical image.
    Nothing is drawn at random. Cost: a pass over the class's features per image, in float64.

    Examples:
        >>> features, labels = torch.tensor([[0.0], [2.0], [10.0]]), torch.tensor([0, 0, 0])
        >>> KCenter().choose(features, labels, 2, torch.Generator())
        tensor([1, 2])
    """

    name: ClassVar[str] = "k-center"
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
            [
                members[_spread(statistics[members].double(), ipc)]
                for members in class_members(labels)
            ]
        )


def _spread(features: Float[Tensor, "n features"], count: int) -> Int[Tensor, "count"]:
    """The greedy order; of equally distant images the one with the lowest index comes first."""
    picks = torch.zeros(count, dtype=torch.int64)
    # Squared distance of each image to the nearest pick.
    gaps = torch.full((len(features),), torch.inf, dtype=features.dtype)
    pick = int(_squares(features, features.mean(0)).argmin())
    for t in range(count):
        gaps = torch.minimum(gaps, _squares(features, features[pick]))
        picks[t], gaps[pick] = pick, -torch.inf  # not twice, even among equal images
        pick = int(gaps.argmax())
    return picks


def _squares(features: Float[Tensor, "n features"], to: Float[Tensor, "features"]) -> Tensor:
    # Differences instead of products: exactly equal for equal images, exactly 0 for copies.
    return (features - to).square().sum(1)
