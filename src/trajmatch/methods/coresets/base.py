"""What a coreset is: a rule by which real training images of each class are chosen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import torch

from trajmatch.types import Int, Tensor

Requirement = Literal["nothing", "features", "forgetting"]


class Coreset(ABC):
    """A rule for choosing images. Subclasses are frozen dataclasses; fields are their settings.

    A class of your own is passed to `select_coreset` as an object, or named on the command line as
    `--method package.module:Name`.
    """

    name: ClassVar[str]
    """As in `--method`; also names the random stream it draws from."""
    requires: ClassVar[Requirement] = "nothing"
    """The statistics of each training image it chooses by. features: the embedding by a trained
    network (`embeddings`); forgetting: how often a network in training forgot the image
    (`forgetting_counts`)."""

    @abstractmethod
    def choose(
        self, statistics: Any, labels: Int[Tensor, "n"], ipc: int, generator: torch.Generator
    ) -> Int[Tensor, "chosen"]:
        """Indices of `ipc` images of each class, class by class.

        statistics: what `requires` names, a row per image; None for "nothing".
        """


def class_members(labels: Int[Tensor, "n"]) -> list[Int[Tensor, "members"]]:
    """The indices of each class's images, in ascending order.

    Examples:
        >>> class_members(torch.tensor([1, 0, 1]))
        [tensor([1]), tensor([0, 2])]
    """
    return [(labels == label).nonzero().flatten() for label in range(int(labels.max()) + 1)]
