"""LD: soft labels for real images that stay as they are."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from trajmatch.methods.dd import RealLoss
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.unrolled import InitialLabels


@dataclasses.dataclass(frozen=True, kw_only=True)
class LD(RealLoss):
    """Flexible dataset distillation: DD's loss as a function of labels and step size alone.

    The images' gradient is computed and dropped: without it an iteration took 0.97 of the time.
    """

    name: ClassVar[str] = "ld"
    title: ClassVar[str] = "label distillation (LD)"
    reference: ClassVar[str] = (
        "Bohdal, Yang, Hospedales: Flexible Dataset Distillation: Learn Labels Instead of Images, "
        "2020 (arXiv 2006.08572)"
    )

    labels_alone: ClassVar[bool] = True

    lr_label: float = 1.0
    """Learning rate of the label logits."""
    init_labels: InitialLabels = "one-hot"
    """Labels begin one-hot (smoothed), or as experts' mean logits on the images."""
    lr_lr: float = 1e-6
    """Learning rate of the step size in the published unit; lr_lr / step_size^2 on its log."""

    @property
    def learns_labels(self) -> bool:
        return True

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        found = super().estimate(problem, parameters, iteration)
        return dataclasses.replace(found, images=None)
