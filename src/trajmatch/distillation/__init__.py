"""Sets that are made: methods that learn images, over one shared outer loop."""

from __future__ import annotations

from trajmatch.distillation.ground import Ground
from trajmatch.distillation.inducing import InducingPoints
from trajmatch.distillation.learned import Estimate, Learned
from trajmatch.distillation.loop import Method, Outcome, run_loop
from trajmatch.distillation.matching import TrajectoryMatching
from trajmatch.distillation.method import Maker
from trajmatch.distillation.table import MAKERS, begin, maker_of

__all__ = [
    "MAKERS",
    "Estimate",
    "Ground",
    "InducingPoints",
    "Learned",
    "Maker",
    "Method",
    "Outcome",
]
__all__ += ["TrajectoryMatching", "begin", "maker_of", "run_loop"]
