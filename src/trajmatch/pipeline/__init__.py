"""From real images to a page: the verbs of the package, each a function of values.

The command line and Python users call the same functions. They put the rooms of the house
together and refuse what does not fit before anything starts; the work is done in the rooms.
"""

from __future__ import annotations

from trajmatch.methods import Outcome
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.checks import load, require_fit
from trajmatch.pipeline.distill import distill, initial_images
from trajmatch.pipeline.evaluate import QUICK_EPOCHS, compare_on_test, evaluate
from trajmatch.pipeline.experts import Progress, full_data_score, train_experts
from trajmatch.pipeline.run import run, write_run
from trajmatch.pipeline.select import select_coreset, training_like

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
