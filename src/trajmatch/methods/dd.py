"""DD and LD: what is learned is asked for the loss on real images after a walk from a fresh start.

Sources: Wang, Zhu, Torralba, Efros, Dataset Distillation, 2018 (arXiv 1811.10959), algorithm 1;
Bohdal, Yang, Hospedales, Flexible Dataset Distillation: Learn Labels Instead of Images, 2020
(arXiv 2006.08572); Sucholutsky & Schonlau, Soft-Label Dataset Distillation, 2019 (arXiv 1910.02551:
DD with `soft_labels`); Feng, Vedantam, Kempe, Embarrassingly Simple Dataset Distillation, 2023
(arXiv 2311.07025: `window`).
"""

from __future__ import annotations

import dataclasses

import torch

from trajmatch.config import DistillConfig
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.unrolled import UnrolledMethod
from trajmatch.networks.functional import parameter_vector
from trajmatch.rng import stream
from trajmatch.types import Tensor
from trajmatch.unroll import OuterLoss
from trajmatch.unroll.gradient import classifier, training_loss


class DD(UnrolledMethod):
    """The cross-entropy on real images at the end of a walk from a network that is new each time.

    With a window, a walk ends at a step drawn from {window, ..., syn_steps}. Cost: the walk, and
    one pass out and back over `batch_real` images, all at once in memory.
    """

    name = "dd"
    title = "dataset distillation (DD)"
    objective = "cross-entropy of real images after the walk"

    def __init__(self, ground: Problem, config: DistillConfig, *, seed: int) -> None:
        super().__init__(ground, config, seed=seed)
        self.window = config.window
        self.loss = training_loss(classifier(self.module, config.precision))

    def steps(self, iteration: int, number: int) -> int:
        if self.window is None:
            return self.config.syn_steps
        draw = stream(self.seed, "distill", "end", iteration, number)
        return int(torch.randint(self.window, self.config.syn_steps + 1, (), generator=draw))

    def outer_problem(
        self, learned: SyntheticParameters, iteration: int, number: int
    ) -> tuple[Tensor, OuterLoss]:
        network = self.ground.fresh(self.seed, "distill", "network", iteration, number)
        draw = stream(self.seed, "distill", "real", iteration, number)
        images, labels = self.ground.batch(self.config.batch_real, draw)
        images = images.to(learned.images)
        return parameter_vector(network).to(images), lambda end: self.loss(end, images, labels)


class LD(DD):
    """The same, asked of the labels and the step size alone: the images stay as they are.

    Their gradient is found and dropped: without it an iteration took 0.97 of the time.
    """

    name = "ld"
    title = "label distillation (LD)"
    objective = "cross-entropy of real images after the walk"
    learns_labels = True

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        return dataclasses.replace(super().estimate(learned, iteration), images=None)
