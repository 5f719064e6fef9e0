"""Herding: images chosen one after another so that their mean stays near the class mean.

Max Welling, Herding dynamical weights to learn, ICML 2009; in the form without replacement of
Rebuffi et al., iCaRL, CVPR 2017, in which the field's tables report it.
"""

from __future__ import annotations

import torch

from trajmatch.types import Float, Int, Tensor


def choose_herding(
    features: Float[Tensor, "n features"],
    labels: Int[Tensor, "n"],
    ipc: int,
    generator: torch.Generator,
) -> Int[Tensor, "chosen"]:
    """`ipc` indices of each class, class by class, in the order they were picked; nothing is drawn.

    Costs one product of the class's features with a vector per pick, in float64.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[_herd(features[members].double(), ipc)])
    return torch.cat(chosen)


def _herd(features: Float[Tensor, "n features"], count: int) -> Int[Tensor, "count"]:
    """The pick t minimizes |mean of features - mean of the t picks|; of equals the lowest index."""
    # From the mean of the class: of |x + y + ... + candidate|, with both far from the origin, too
    # few digits would be left.
    features = features - features.mean(0)
    squares, total = features.square().sum(1), torch.zeros_like(features[0])
    picks = torch.zeros(count, dtype=torch.int64)
    taken = torch.zeros(len(features), dtype=torch.bool)
    # Equal images may differ by rounding in the product.
    slack = 1e-12 * float(squares.max())
    for t in range(count):
        length = squares + 2 * (features @ total)  # |total + x|^2 without its constant |total|^2
        length[taken] = torch.inf
        pick = int((length <= length.min() + slack * (t + 1)).nonzero()[0])
        total += features[pick]
        picks[t], taken[pick] = pick, True
    return picks
