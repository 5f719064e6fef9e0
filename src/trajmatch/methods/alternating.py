"""What methods share that alternate with a network's training: DC, DSA and CAFE."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch.methods.base import Conditions, Method
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.networks.functional import parameter_vector, require_stateless
from trajmatch.types import Float, Tensor
from trajmatch.unroll.gradient import GradientFn, gradient_fn
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student

BATCH = 256
"""Synthetic images per step of the network."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AlternatingMethod(Method):
    """A method that compares real and synthetic images in one network after another, while each is
    trained on the synthetic images.

    Iteration i is update i % outer of network i // outer. Every network begins fresh and takes
    `inner` SGD steps on the synthetic images before each update but the first; no gradient goes
    through these steps. `problem.state["network"]` holds its parameters.
    """

    stream_name: ClassVar[str]
    """First name of its random streams."""

    lr_img: float = 0.1
    """Learning rate of the pixels, in whitened units; published."""
    batch_real: int = 256
    """Real images of each class per iteration; published."""
    lr_net: float = 0.01
    """Learning rate of the network on the synthetic images; published."""
    outer_loop: int | None = None
    """Updates of the images for one network. None: published for --ipc (1, 10, 50)."""
    inner_loop: int | None = None
    """The network's steps between two of them. None: published for --ipc (1, 50, 10)."""

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        require_stateless(conditions.spec.build(seed=0))
        self.loops(conditions.ipc, conditions.images)

    def loops(self, ipc: int, images: int) -> tuple[int, int]:
        """(outer, inner) for so many images per class and in all."""
        return self.outer_loop or 1, self.inner_loop or 1

    def _network(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Float[Tensor, "params"]:
        """The parameters of the network that this iteration compares the images in."""
        images = len(parameters.images)
        outer, inner = self.loops(images // problem.spec.classes, images)
        number, update = divmod(iteration, outer)
        if update == 0:
            return self._fresh(problem, number)
        return self._trained(problem, problem.state["network"], parameters, inner, (iteration,))

    def _fresh(self, problem: Problem, number: int) -> Float[Tensor, "params"]:
        return parameter_vector(problem.fresh("distill", self.stream_name, "network", number))

    def _trained(
        self,
        problem: Problem,
        vector: Float[Tensor, "params"],
        parameters: SyntheticParameters,
        steps: int,
        names: tuple[int, ...],
    ) -> Float[Tensor, "params"]:
        """`vector` after so many steps on the images; `names` name its random draws."""
        schedule = Schedule.make(
            parameters.images,
            steps=steps,
            batch_syn=BATCH if len(parameters.images) > BATCH else None,
            augment=self.augmentation,
            seed=problem.seed,
            names=("distill", self.stream_name, "walk", *names),
        )
        student = self._student(problem, parameters.images, parameters.classes, schedule)
        for step in range(steps):
            vector = vector - self.lr_net * student.step(step, vector)
        return vector

    def _student(
        self, problem: Problem, images: Tensor, labels: Tensor | int, schedule: Schedule
    ) -> Student:
        if isinstance(labels, int):
            labels = torch.full((len(images),), labels, device=images.device)
        gradient = self._gradient_fn(problem)
        return Student(gradient, images, labels, self.augmentation, schedule, problem.micro_batch)

    def _gradient_fn(self, problem: Problem) -> GradientFn:
        # One compilation a shape, and classes differ in size: only where it is asked for.
        compile = problem.compile == "yes"
        return gradient_fn(problem.module, precision=problem.precision, compile=compile)
