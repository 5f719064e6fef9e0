"""Random images of each class: the baseline of every other choice."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch.methods.coresets.base import Coreset, class_members
from trajmatch.types import Float, Int, Tensor


@dataclasses.dataclass(frozen=True)
class Random(Coreset):
    """Images of each class at random, without replacement.

    Each class is one shuffle, so a smaller `ipc` gives the first images of a larger one.

    Examples:
        >>> labels = torch.tensor([0, 1, 0, 1])
        >>> Random().choose(None, labels, 2, torch.Generator().manual_seed(0)).sort().values
        tensor([0, 1, 2, 3])
    """

    name: ClassVar[str] = "random"

    def choose(
        self,
        statistics: Float[Tensor, "n features"] | None,
        labels: Int[Tensor, "n"],
        ipc: int,
        generator: torch.Generator,
    ) -> Int[Tensor, "chosen"]:
        """Indices of `ipc` images of each class; `statistics` are not used."""
        return torch.cat(
            [
                members[torch.randperm(len(members), generator=generator)[:ipc]]
                for members in class_members(labels)
            ]
        )
