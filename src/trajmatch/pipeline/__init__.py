"""From real images to a page: the verbs of the package, each a function of values.

The command line and Python users call the same functions. They put the rooms of the house
together and refuse what does not fit before anything starts; the work is done in the rooms.
"""

from __future__ import annotations

from trajmatch.distillation import Outcome
from trajmatch.pipeline.checks import load, network_for, require_fit
from trajmatch.pipeline.choosing import select_coreset, training_like
from trajmatch.pipeline.distilling import distill, initial_images
from trajmatch.pipeline.scoring import QUICK_EPOCHS, compare_on_test, evaluate
from trajmatch.pipeline.training import Progress, full_data_score, train_experts
from trajmatch.pipeline.whole import run, write_run

__all__ = [
    "QUICK_EPOCHS",
    "Outcome",
    "Progress",
    "compare_on_test",
    "distill",
    "evaluate",
    "full_data_score",
    "initial_images",
    "load",
    "network_for",
    "require_fit",
    "run",
    "select_coreset",
    "train_experts",
    "training_like",
    "write_run",
]
