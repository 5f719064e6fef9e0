"""From real images to a page: the verbs of the package, each a function of values.

The command line and Python users call the same functions. They combine the rooms below and refuse
what does not fit before anything starts.
"""

from __future__ import annotations

from trajmatch.methods import Outcome
from trajmatch.networks.spec import network_for
from trajmatch.pipeline.ceiling import ceiling, ceiling_config
from trajmatch.pipeline.checks import load, require_fit
from trajmatch.pipeline.distill import (
    Untrained,
    distill,
    experts_or_untrained,
)
from trajmatch.pipeline.evaluate import (
    QUICK_EPOCHS,
    compare_on_test,
    evaluate,
    final_scores,
    networks_for,
)
from trajmatch.pipeline.experts import experts_score, recipe_experts, train_experts
from trajmatch.pipeline.flipping import compare_flipping
from trajmatch.pipeline.initial import initial_parameters
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.pipeline.run import FinishedRun, run, write_run
from trajmatch.pipeline.select import select_coreset, training_like

__all__ = [
    "QUICK_EPOCHS",
    "FinishedRun",
    "Outcome",
    "Recipe",
    "Untrained",
    "ceiling",
    "ceiling_config",
    "compare_flipping",
    "compare_on_test",
    "distill",
    "evaluate",
    "experts_or_untrained",
    "experts_score",
    "final_scores",
    "initial_parameters",
    "load",
    "load_recipe",
    "network_for",
    "networks_for",
    "recipe_experts",
    "require_fit",
    "run",
    "select_coreset",
    "train_experts",
    "training_like",
    "write_run",
]
