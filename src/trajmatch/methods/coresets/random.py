"""Images of each class at random: what every other choice has to beat."""

from __future__ import annotations

import torch

from trajmatch.types import Float, Int, Tensor


def choose_random(
    features: Float[Tensor, "n features"] | None,
    labels: Int[Tensor, "n"],
    ipc: int,
    generator: torch.Generator,
) -> Int[Tensor, "chosen"]:
    """`ipc` indices of each class, class by class; the features are not looked at.

    Each class is one shuffle, so the choice for a smaller `ipc` begins the choice for a larger one.
    """
    chosen = []
    for label in range(int(labels.max()) + 1):
        members = (labels == label).nonzero().flatten()
        chosen.append(members[torch.randperm(len(members), generator=generator)[:ipc]])
    return torch.cat(chosen)
