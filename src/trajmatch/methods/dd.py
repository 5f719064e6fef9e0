"""DD: the loss on real images after training from a fresh start."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from trajmatch.config import require
from trajmatch.methods.parameters import SyntheticParameters
from trajmatch.methods.problem import Problem, real_batch
from trajmatch.methods.unrolled import SoftLabels, UnrolledMethod
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import parameter_vector
from trajmatch.networks.precision import classifier
from trajmatch.runtime.memory import Need
from trajmatch.types import Tensor
from trajmatch.unroll import OuterLoss
from trajmatch.unroll.gradient import training_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class RealLoss(UnrolledMethod):
    """The cross-entropy of real images at the end of an unroll from a fresh network.

    With `bptt_steps`, an unroll ends at a step drawn from {bptt_steps, ..., syn_steps} and only its
    last `bptt_steps` are differentiated through. Cost: the unroll, and a forward and backward pass
    over `batch_real` images, all at once in memory.
    """

    objective: ClassVar[str] = "cross-entropy of real images after the unroll"

    syn_steps: int = 50
    """N: student steps on the synthetic images per iteration."""
    step_size: float = 0.01
    """alpha_0: the student's learning rate at the start; learned as log(alpha)."""
    lr_lr: float = 1e-7
    """Learning rate of the step size in the published unit; lr_lr / step_size^2 on its log."""
    batch_real: int = 256
    """Real images per iteration, of all classes together."""
    bptt_steps: int | None = None
    """The last steps of an unroll that are differentiated through (RaT-BPTT). None: all."""

    def __post_init__(self) -> None:
        super().__post_init__()
        steps = self.syn_steps
        require(self, "bptt_steps", (self.bptt_steps or 1) <= steps, f"at most syn_steps ({steps})")

    @property
    def differentiated_steps(self) -> int | None:
        return self.bptt_steps

    def memory_needs(self, spec: NetworkSpec, images: int) -> list[Need]:
        return [*super().memory_needs(spec, images), real_batch(spec, self.batch_real)]

    def steps(self, problem: Problem, iteration: int, number: int) -> int:
        if self.bptt_steps is None:
            return self.syn_steps
        draw = problem.stream("end", iteration, number)
        return int(torch.randint(self.bptt_steps, self.syn_steps + 1, (), generator=draw))

    def outer_problem(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int, number: int
    ) -> tuple[Tensor, OuterLoss]:
        loss = problem.cached(
            "loss", lambda: training_loss(classifier(problem.module, problem.precision))
        )
        network = problem.fresh("distill", "network", iteration, number)
        draw = problem.stream("real", iteration, number)
        images, labels = problem.batch(self.batch_real, draw)
        images = images.to(parameters.images)
        return parameter_vector(network).to(images), lambda end: loss(end, images, labels)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DD(SoftLabels, RealLoss):
    """Dataset distillation (algorithm 1); with `soft_labels` soft-label dataset distillation
    (Sucholutsky & Schonlau 2019, arXiv 1910.02551); with `bptt_steps` as in Feng, Vedantam and
    Kempe 2023 (arXiv 2311.07025).

    The papers train one network for each setting and decay its learned rate; the defaults here are
    chosen for a ConvNet with one image per class.
    """

    name: ClassVar[str] = "dd"
    title: ClassVar[str] = "dataset distillation (DD)"
    reference: ClassVar[str] = (
        "Wang, Zhu, Torralba, Efros: Dataset Distillation, 2018 (arXiv 1811.10959)"
    )

    lr_img: float = 50.0
    """Learning rate of the pixels, in whitened units."""
    step_size: float = 0.02
    """alpha_0: the student's learning rate at the start; learned as log(alpha)."""
    lr_lr: float = 1e-6
    """Learning rate of the step size in the published unit; lr_lr / step_size^2 on its log."""
