"""A network that trains along on the images, so that they are looked at from many places."""

from __future__ import annotations

from typing import ClassVar

import torch

from trajmatch.config import DistillConfig
from trajmatch.methods.base import Method, require_hard_labels
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.networks.functional import parameter_vector
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Tensor
from trajmatch.unroll.gradient import gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student

BATCH = 256
"""Synthetic images per step of the network."""


class AlternatingMethod(Method):
    """A method that looks at the images through one network after another, each trained on them.

    Iteration i stands at position i % outer of network i // outer. Every network begins fresh, and
    takes `inner` SGD steps on the synthetic images before each position but the first; `carried`
    holds where it has come to. No gradient goes through these steps.

    Raises SettingError for soft labels and for a network that is not a function of its parameters.
    """

    draws: ClassVar[str]
    """What its random streams are called."""
    outer: int
    inner: int

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        require_hard_labels(config)
        self.module = ground.fresh(0)
        self.micro_batch = micro_batch_size(self.module, self.module.image_shape, self.device)
        # One compilation a shape, and classes differ in size: only where it is asked for.
        compile = config.compile == "yes"
        self.gradient_fn = gradient_fn(self.module, precision=config.precision, compile=compile)

    def _network(self, learned: SyntheticParameters, iteration: int) -> Tensor:
        """The parameters that the images are looked at with."""
        number, position = divmod(iteration, self.outer)
        if position == 0:
            return self._begun(number)
        return self._walked(self.carried["network"], learned, self.inner, iteration)

    def _begun(self, number: int) -> Tensor:
        """The parameters of a fresh network."""
        return parameter_vector(
            self.ground.fresh(self.seed, "distill", self.draws, "network", number)
        )

    def _walked(
        self, vector: Tensor, learned: SyntheticParameters, steps: int, *names: int
    ) -> Tensor:
        """Where so many steps on the images lead from `vector`; `names` are those of its draws."""
        schedule = Schedule.make(
            learned.images,
            steps=steps,
            batch_syn=BATCH if len(learned.images) > BATCH else None,
            augment=self.augment,
            seed=self.seed,
            names=("distill", self.draws, "walk", *names),
        )
        student = self._student(learned.images, learned.classes, schedule)
        for step in range(steps):
            vector = vector - self.config.lr_net * student.step(step, vector)
        return vector

    def _student(self, images: Tensor, labels: Tensor | int, schedule: Schedule) -> Student:
        if isinstance(labels, int):
            labels = torch.full((len(images),), labels, device=images.device)
        return Student(self.gradient_fn, images, labels, self.augment, schedule, self.micro_batch)
