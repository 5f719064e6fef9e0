"""What every method that makes images has: a ground, and a gradient for an iteration."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch

from trajmatch.config import DistillConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.networks import NetworkSpec
from trajmatch.types import Tensor


class Method(ABC):
    """A method's estimate of a loss and its gradients, iteration by iteration.

    An estimate is a function of (seed, what is learned, `carried`, iteration) alone: every draw
    comes from `rng.stream(seed, "distill", ..., iteration)`. So a run that was killed goes on to
    the same bits.
    """

    name: str
    title: ClassVar[str]
    """What it is called on a page."""
    objective: ClassVar[str]
    """What its loss is, in a few words."""
    needs_experts: ClassVar[bool] = False
    """Whether it cannot do without a library."""
    learns_step_size: ClassVar[bool] = False
    """Whether the step size is learned with the images; a set of another method has none."""
    learns_labels: ClassVar[bool] = False
    """Whether it learns soft labels without being asked to."""
    normalized: bool = False
    """Whether a loss above `skip_loss` tells that the images led astray."""

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        self.ground = ground
        self.config = config
        self.seed = seed
        self.device = ground.device
        self.augment = (
            None if config.augment in (None, "none") else Augmentation(str(config.augment))
        )
        self.decisions: dict[str, Any] = {}
        """What it decided for this run, as plain values; saved, and repeated when resumed."""
        self.carried: dict[str, Tensor] = {}
        """Tensors that an iteration hands to the next; saved with every checkpoint."""

    @abstractmethod
    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """The loss of one iteration and its gradients."""

    def threads(self, learned: SyntheticParameters) -> int:
        """How many threads there is work for on a CPU."""
        return torch.get_num_threads()

    @classmethod
    def work(cls, spec: NetworkSpec, config: DistillConfig) -> int:
        """How much there is to do in an iteration, in a unit of the method's own: twice as much
        takes twice as long. By it a small iteration tells what a large one costs. Here the classes,
        with each of which the same is done."""
        return spec.classes

    @classmethod
    def held(cls, spec: NetworkSpec, config: DistillConfig) -> int:
        """What an iteration holds in memory at its peak, in such a unit; here one class."""
        return 1


def require_hard_labels(config: DistillConfig) -> None:
    """Refuse soft labels where a method has no gradient for them: they would stay as they began."""
    if config.soft_labels:
        raise SettingError(
            f"--soft-labels are not learned by {config.method}, which compares classes; leave them "
            "out, or use --method mtt"
        )
