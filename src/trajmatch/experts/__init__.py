"""Networks trained on real images, and their parameters after every epoch: the trajectories that
are matched."""

from __future__ import annotations

from trajmatch.experts.filling import LibraryFilling
from trajmatch.experts.library import ExpertLibrary, open_experts
from trajmatch.experts.train import expert_epochs, train_expert
from trajmatch.experts.trajectory import TrainingState, Trajectory, save_trajectory

__all__ = [
    "ExpertLibrary",
    "LibraryFilling",
    "TrainingState",
    "Trajectory",
    "expert_epochs",
    "open_experts",
    "save_trajectory",
    "train_expert",
]
