"""Networks trained on real images and recorded: the paths that students are asked to follow."""

from __future__ import annotations

from trajmatch.experts.filling import fill
from trajmatch.experts.library import ExpertLibrary, open_experts
from trajmatch.experts.train import train_expert
from trajmatch.experts.trajectory import TrainingState, Trajectory, save_trajectory

__all__ = [
    "ExpertLibrary",
    "TrainingState",
    "Trajectory",
    "fill",
    "open_experts",
    "save_trajectory",
    "train_expert",
]
