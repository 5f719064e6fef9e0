"""Sets that are made: methods that learn images, over one shared outer loop."""

from __future__ import annotations

from trajmatch.methods.base import Maker
from trajmatch.methods.kip.kip import InducingPoints
from trajmatch.methods.loop import Method, Outcome, run_loop
from trajmatch.methods.mtt import TrajectoryMatching
from trajmatch.methods.parameters import Estimate, Learned
from trajmatch.methods.problem import Ground
from trajmatch.methods.registry import MAKERS, begin, maker_of

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
