"""What methods share that unroll a student on the synthetic images: MTT, DD and LD."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar, Literal

import torch

from trajmatch.config import DSA_STRATEGY
from trajmatch.data.canvas import CropSampler
from trajmatch.errors import SettingError
from trajmatch.methods.base import Conditions, Method
from trajmatch.methods.parameters import Estimate, SyntheticParameters, mean_estimate
from trajmatch.methods.problem import Problem
from trajmatch.networks import NetworkSpec
from trajmatch.networks.base import Network, height_width
from trajmatch.runtime.compiling import Work, forward_flop, wanted
from trajmatch.runtime.memory import Need
from trajmatch.runtime.micro_batches import micro_batch_size
from trajmatch.types import Tensor
from trajmatch.unroll import OuterLoss, Schedule, Student, plan
from trajmatch.unroll.gradient import GradientFn, gradient_fn
from trajmatch.unroll.optimizers import SGD, InnerOptimizer
from trajmatch.unroll.unroll import unroll

Gradient = Literal["auto", "stored", "reverse", "tesla"]
InitialLabels = Literal["one-hot", "experts"]

ASSUMED_STEPS, ASSUMED_STEP_SIZE = 20, 0.01
"""What estimates assume of a method whose steps are calibrated when it begins."""
STEP_FLOP = 12
"""A student step and its reverse, in convolution passes of one image."""
LEAST_BATCH = 10
"""Images a student step of the smallest iteration that is measured for an estimate."""
WORK_PER_THREAD = 16
"""A second thread is started from a 16th of a micro-batch on: half a megabyte of activation."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class UnrolledMethod(Method):
    """An outer loss at the end of N student steps, and its exact gradient.

    `outer_problem` says where a student starts and what the loss of its end point is. Memory: as
    `gradient` says; time: 12 convolution passes of the batch per step ("reverse"), 9 ("stored").
    """

    learns_step_size: ClassVar[bool] = True

    syn_steps: int | None = 50
    """N: student steps on the synthetic images per iteration."""
    batch_syn: int | None = None
    """Synthetic images (of a texture: canvases) per student step. None: all of them."""
    step_size: float | None = 0.01
    """alpha_0: the student's learning rate at the start; learned as log(alpha)."""
    lr_lr: float | None = 1e-7
    """Learning rate of the step size in the published unit; lr_lr / step_size^2 on its log."""
    augment: str | None = DSA_STRATEGY
    """DSA strategy inside the unroll, or none. Without flip for letters, digits and signs."""
    inner: InnerOptimizer = SGD()
    """The student's optimizer: sgd as published, momentum(momentum=0.9), adam(betas=(0.9, 0.999));
    each is reversed exactly. step_size is its learning rate."""
    segments: int = 1
    """Unrolls averaged per update."""
    gradient: Gradient = "auto"
    """reverse: memory of one step's graph whatever N is. stored: the graph of all N steps. auto:
    as many as fit. All three are exact; tesla leaves second-order terms out (Cui et al. 2023)."""

    @abstractmethod
    def outer_problem(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int, number: int
    ) -> tuple[Tensor, OuterLoss]:
        """Start vector and outer loss of unroll `number` of an iteration."""

    def steps(self, problem: Problem, iteration: int, number: int) -> int:
        """Student steps of unroll `number` of an iteration."""
        return self.student_steps

    @property
    def student_steps(self) -> int:
        """`syn_steps`; before it is calibrated what estimates of cost assume."""
        return ASSUMED_STEPS if self.syn_steps is None else self.syn_steps

    @property
    def differentiated_steps(self) -> int | None:
        """How many last steps are differentiated through; None: all."""
        return None

    @property
    def first_step_size(self) -> float:
        return ASSUMED_STEP_SIZE if self.step_size is None else self.step_size

    @property
    def rates(self) -> dict[str, float]:
        # lr_lr is published for SGD on alpha itself; to first order a step of lr_lr / alpha_0^2 on
        # log(alpha) is the same step, and it cannot make alpha negative.
        return {**super().rates, "log_step_size": (self.lr_lr or 0.0) / self.first_step_size**2}

    def check(self, conditions: Conditions) -> None:
        super().check(conditions)
        if self.gradient == "tesla" and not isinstance(self.inner, SGD):
            raise SettingError(
                f"gradient is tesla, which is defined for plain SGD, and inner is {self.inner}; "
                "use --inner=sgd, or --gradient=reverse"
            )
        if self.batch_syn is not None and self.batch_syn > conditions.images:
            raise SettingError(
                f"batch_syn is {self.batch_syn} and there are {conditions.images} synthetic "
                f"images; use 1 to {conditions.images}, or none for all of them"
            )

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        """Loss and gradients of one iteration: the mean over `segments` unrolls."""
        return mean_estimate(
            [self._one(problem, parameters, iteration, n) for n in range(self.segments)]
        )

    def _one(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int, number: int
    ) -> Estimate:
        start, outer_loss = self.outer_problem(problem, parameters, iteration, number)
        student = self.student(problem, parameters, iteration, number)
        resolved = problem.resolved
        if "keep" not in resolved:
            decided = plan(student, start, self.gradient, self.differentiated_steps)
            resolved["keep"], problem.notes["keep_reason"] = decided.keep, decided.reason
        result = unroll(
            student,
            start,
            parameters.step_size,
            outer_loss,
            keep=resolved["keep"],
            truncate=self.gradient == "tesla",
            bptt_steps=self.differentiated_steps,
            optimizer=self.inner,
        )
        # What the compiler could not do was done without it, and is from now on.
        resolved["compile"] = resolved["compile"] and student.gradient_fn.compiled
        return Estimate(result.loss, result.grad_images, result.grad_labels, result.grad_step_size)

    def student(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int, number: int
    ) -> Student:
        """The student of unroll `number` of an iteration, with its batches and augmentation."""
        schedule = Schedule.make(
            parameters.images,
            steps=self.steps(problem, iteration, number),
            batch_syn=self.batch_syn,
            augment=self.augmentation,
            sampler=self._sampler(problem),
            seed=problem.seed,
            names=("distill", "walk", iteration, number),
        )
        return Student(
            self._gradient_fn(problem, parameters),
            parameters.images,
            parameters.labels,
            self.augmentation,
            schedule,
            problem.micro_batch,
        )

    def _sampler(self, problem: Problem) -> CropSampler | None:
        canvas = self.canvas_for(*problem.module.image_shape[1:])
        return None if canvas is None else canvas.sampler

    def images_per_step(self, images: int) -> int:
        """How many images a student is shown at a step, of so many synthetic ones."""
        return min(self.batch_syn or images, images) * getattr(self, "samples", 1)

    def scaled_down(self, images: int) -> tuple[Method, float]:
        """One unroll; of half the steps, unless only the last ones are differentiated; on half the
        images a step."""
        if self.segments > 1:
            return dataclasses.replace(self, segments=1), float(self.segments)
        if self.student_steps > 1 and self.differentiated_steps is None:
            steps = -(-self.student_steps // 2)
            return dataclasses.replace(self, syn_steps=steps), self.student_steps / steps
        batch = min(self.batch_syn or images, images)
        if batch > LEAST_BATCH:
            half = -(-batch // 2)
            return dataclasses.replace(self, batch_syn=half), batch / half
        return self, 1.0

    def memory_needs(self, spec: NetworkSpec, images: int) -> list[Need]:
        """The parameters before each step that is differentiated, and the crops of a step."""
        needs = super().memory_needs(spec, images)
        if self.gradient != "tesla":
            steps = self.differentiated_steps or self.student_steps
            vectors = 4 * steps * spec.parameters()
            needs.append(Need(f"the parameters at {steps} steps", vectors, "syn_steps or width"))
        height, width = height_width(spec.size)
        if self.canvas_for(height, width) is not None:
            crops = self.images_per_step(images)
            each = (4 * spec.channels + 8) * height * width  # pixels, and where they are read
            needs.append(Need(f"{crops} crops a step", crops * each, "samples, ipc or batch_syn"))
        return needs

    def threads(self, problem: Problem, parameters: SyntheticParameters) -> int:
        """More than one only where there is work enough for each."""
        batch = self.images_per_step(len(parameters.images))
        little = batch * WORK_PER_THREAD <= problem.micro_batch
        return 1 if little else super().threads(problem, parameters)

    def _gradient_fn(self, problem: Problem, parameters: SyntheticParameters) -> GradientFn:
        """Compiled or not: settled once a run, by how much there is to compute."""
        if "compile" not in problem.resolved:
            batch = self.images_per_step(len(parameters.images))
            work = self.work(problem.module, problem.iterations, batch, problem.device)
            problem.resolved["compile"] = wanted(problem.compile, work)
        return gradient_fn(
            problem.module, precision=problem.precision, compile=problem.resolved["compile"]
        )

    def work(self, module: Network, iterations: int, batch: int, device: torch.device) -> Work:
        """What so many iterations compute, with `batch` images a step, forward and back."""
        micro_batch = micro_batch_size(module, module.image_shape, device)
        steps = iterations * self.segments * self.student_steps
        calls = 3 * steps * -(-batch // (micro_batch or batch))
        return Work(calls, STEP_FLOP * steps * batch * forward_flop(module, module.image_shape))


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftLabels:
    """The settings of learned labels, for methods that can learn them."""

    soft_labels: bool = False
    """Learn the labels as well, by the same exact gradient."""
    init_labels: InitialLabels = "one-hot"
    """Learned labels begin one-hot (smoothed), or as experts' mean logits on the first images."""
    lr_label: float = 1.0
    """Learning rate of the label logits where they are learned."""

    @property
    def learns_labels(self) -> bool:
        return self.soft_labels
