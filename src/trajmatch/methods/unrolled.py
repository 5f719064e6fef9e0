"""What methods share that let a student walk on the images and ask something of where it ends."""

from __future__ import annotations

from abc import abstractmethod

import torch

from trajmatch.config import DistillConfig
from trajmatch.data.canvas import CropSampler
from trajmatch.methods.base import Method
from trajmatch.methods.parameters import Estimate, SyntheticParameters, mean_estimate
from trajmatch.methods.problem import Problem
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network
from trajmatch.runtime.compiling import Work, forward_flop, wanted
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Tensor
from trajmatch.unroll import OuterLoss, Schedule, Student, plan
from trajmatch.unroll.gradient import GradientFn, gradient_fn
from trajmatch.unroll.unroll import unroll

PASSES = 12
"""Of a network's convolutions, in one student step and its way back."""
FORWARD_AND_BACK = 3
"""Forward passes that a forward and a backward pass take as long as."""
WORK_PER_THREAD = 16
"""A second thread is started from a 16th of a cache-sized piece on: half a megabyte."""


class UnrolledMethod(Method):
    """Estimates a loss at the end of a student's walk, and its exact gradient."""

    learns_step_size = True
    window: int | None = None
    """The last steps that are differentiated through; None: all."""

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        self.module = ground.spec.build(seed=0).to(self.device)
        self.micro_batch = micro_batch_size(self.module, self.module.image_shape, self.device)
        height, width = self.module.image_shape[1:]
        self.crop = CropSampler(height, width, config.samples) if config.texture else None

    @abstractmethod
    def outer_problem(
        self, learned: SyntheticParameters, iteration: int, number: int
    ) -> tuple[Tensor, OuterLoss]:
        """Where walk `number` of an iteration starts, and what is asked of its end."""

    def steps(self, iteration: int, number: int) -> int:
        """How long walk `number` of an iteration is."""
        return self.config.syn_steps

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        """Loss and gradients of one iteration: the mean over `config.segments` walks."""
        return mean_estimate(
            [self._one(learned, iteration, number) for number in range(self.config.segments)]
        )

    def _one(self, learned: SyntheticParameters, iteration: int, number: int) -> Estimate:
        start, outer_loss = self.outer_problem(learned, iteration, number)
        schedule = Schedule.make(
            learned.images,
            steps=self.steps(iteration, number),
            batch_syn=self.config.batch_syn,
            augment=self.augment,
            window=self.crop,
            seed=self.seed,
            names=("distill", "walk", iteration, number),
        )
        student = Student(
            self._gradient_fn(learned),
            learned.images,
            learned.labels,
            self.augment,
            schedule,
            self.micro_batch,
        )
        if "keep" not in self.decisions:
            decided = plan(student, start, self.config.gradient, self.window)
            self.decisions |= {"keep": decided.keep, "reason": decided.reason}
        result = unroll(
            student,
            start,
            learned.step_size,
            outer_loss,
            keep=self.decisions["keep"],
            truncate=self.config.gradient == "tesla",
            window=self.window,
        )
        return Estimate(result.loss, result.grad_images, result.grad_labels, result.grad_step_size)

    def batch(self, learned: SyntheticParameters) -> int:
        """How many images a student sees at a step."""
        return (self.config.batch_syn or len(learned.images)) * self.config.samples

    def threads(self, learned: SyntheticParameters) -> int:
        """More than one only where there is work enough for each."""
        small = self.batch(learned) * WORK_PER_THREAD <= self.micro_batch
        return 1 if small else super().threads(learned)

    @classmethod
    def work(cls, spec: NetworkSpec, config: DistillConfig) -> int:
        """Passes of an image through the network: the steps before the window, those in it and
        their way back, and a real batch at the end."""
        last = config.window or config.syn_steps
        before = (config.syn_steps - last) // 2  # of walks of all lengths from `last` on, the mean
        unroll = FORWARD_AND_BACK * before + PASSES * last
        real = FORWARD_AND_BACK * config.batch_real
        return config.segments * (_batch(spec.classes, config) * unroll + real)

    @classmethod
    def held(cls, spec: NetworkSpec, config: DistillConfig) -> int:
        """The same of records, of all steps that are gone back through unless they are made again,
        and of the real batch."""
        steps = 1 if config.gradient in ("reverse", "tesla") else config.window or config.syn_steps
        return _batch(spec.classes, config) * steps * FORWARD_AND_BACK + config.batch_real

    def _gradient_fn(self, learned: SyntheticParameters) -> GradientFn:
        """Compiled or not: decided once a run, by how much there is to do."""
        if "compile" not in self.decisions:
            work = unroll_work(self.module, self.config, self.batch(learned), self.device)
            self.decisions["compile"] = wanted(self.config.compile, work)
        return gradient_fn(
            self.module, precision=self.config.precision, compile=self.decisions["compile"]
        )


def _batch(classes: int, config: DistillConfig) -> int:
    """How many images a student sees at a step."""
    count = config.ipc * classes
    return min(config.batch_syn or count, count) * config.samples


def unroll_work(module: Network, config: DistillConfig, batch: int, device: torch.device) -> Work:
    """What it takes to walk all iterations of a run, with `batch` images a step, out and back."""
    micro_batch = micro_batch_size(module, module.image_shape, device)
    steps = config.iterations * config.segments * config.syn_steps
    calls = 3 * steps * -(-batch // (micro_batch or batch))
    return Work(calls, PASSES * steps * batch * forward_flop(module, module.image_shape))
