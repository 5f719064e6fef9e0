"""The images that fresh networks are trained on, and those they are tested on."""

from __future__ import annotations

import dataclasses

import torch

from trajmatch.config import EvaluateConfig
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Float, Int, Tensor

DEFAULT_LR = 0.01
"""Learning rate for a set without a learned step size, as for the paper's baselines."""


@dataclasses.dataclass(frozen=True, eq=False)
class TrainingSet:
    """Whitened images and labels that networks are trained on, with facts for their score.

    Examples:
        >>> training_set = TrainingSet(torch.zeros(10, 1, 8, 8), torch.arange(10), lr=0.02)
        >>> training_set.learning_rate(EvaluateConfig())
        0.02
        >>> training_set.learning_rate(EvaluateConfig(lr=0.1))
        0.1
    """

    images: Float[Tensor, "n channels height width"]
    labels: Int[Tensor, "n"] | Float[Tensor, "n classes"]
    """Class indices, or a probability for each class."""
    lr: float | None = None
    """The set's learned step size, or a rate that was selected for the network; None means 0.01."""
    method: str = ""
    ipc: int | None = None
    lr_origin: str = ""
    """How `lr` was found where it is not the set's own, such as `chosen on validation from 5`."""
    fingerprint: str = ""
    """`SyntheticSet.fingerprint`; identifies the set in an evaluation log."""

    @classmethod
    def of(cls, distilled: SyntheticSet, device: str | torch.device = "cpu") -> TrainingSet:
        """The images, labels and step size of a distilled set or a coreset, on `device`."""
        return cls(
            images=distilled.images.to(device),
            labels=distilled.labels.to(device),
            lr=distilled.step_size,
            method=str(distilled.info.get("method", "")),
            ipc=distilled.ipc,
            fingerprint=distilled.fingerprint,
        )

    def learning_rate(self, config: EvaluateConfig) -> float:
        """The rate that training starts at: `config.lr`, else the set's own, else 0.01."""
        return config.lr or self.lr or DEFAULT_LR


@dataclasses.dataclass(frozen=True, eq=False)
class TestSet:
    """Real images of one split, whitened as the training sets are.

    Examples:
        >>> TestSet(torch.zeros(2, 1, 8, 8), torch.tensor([0, 1]), split="val").split
        'val'
    """

    __test__ = False  # pytest would collect the class in every test file that imports it

    images: Float[Tensor, "tests channels height width"]
    labels: Int[Tensor, "tests"]
    split: str = "test"
    """val or test; for the score's text only."""
    whitening: str | None = None
    """The whitening's name, such as zca; for the score's text only."""

    def per_class(self, classes: int) -> list[int]:
        """Images of class 0, 1, ... `classes` - 1."""
        counts: list[int] = torch.bincount(self.labels, minlength=classes).tolist()
        return counts
