"""k-center: images so spread that no image of the class is far from a chosen one.

Ozan Sener, Silvio Savarese, Active learning for convolutional neural networks: a core-set approach,
ICLR 2018 (algorithm 1, the greedy one). Whatever it starts from, the largest distance is at most
twice the least that any choice of as many images reaches.
"""

from __future__ import annotations

import torch

from trajmatch.types import Float, Int, Tensor


def choose_k_center(
    features: Float[Tensor, "n features"],
    labels: Int[Tensor, "n"],
    ipc: int,
    generator: torch.Generator,
) -> Int[Tensor, "chosen"]:
    """`ipc` indices of each class, class by class, in the order they were picked; nothing is drawn.

    The first is the image nearest the class mean: the paper starts from images that are labeled
    already, and there are none here. So one image per class is a typical one and not an accident.

    Costs a pass over the class's features per pick, in float64.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[_spread(features[members].double(), ipc)])
    return torch.cat(chosen)


def _spread(features: Float[Tensor, "n features"], count: int) -> Int[Tensor, "count"]:
    """After the first, each pick is the farthest from those before it; of equals the lowest
    index."""
    picks = torch.zeros(count, dtype=torch.int64)
    gaps = torch.full((len(features),), torch.inf, dtype=features.dtype)  # to a pick, squared
    pick = int(_squares(features, features.mean(0)).argmin())
    for t in range(count):
        gaps = torch.minimum(gaps, _squares(features, features[pick]))
        picks[t], gaps[pick] = pick, -torch.inf  # never again, even where all that is left is equal
        pick = int(gaps.argmax())
    return picks


def _squares(features: Float[Tensor, "n features"], to: Float[Tensor, "features"]) -> Tensor:
    # By differences, not by products: the same for equal images, and 0 for a pick's equals.
    return (features - to).square().sum(1)
