"""Sets that are made: methods that learn images, over one shared outer loop."""

from __future__ import annotations

from trajmatch.distillation.learned import Estimate, Learned
from trajmatch.distillation.loop import Method, Outcome, run_loop
from trajmatch.distillation.matching import TrajectoryMatching

__all__ = ["Estimate", "Learned", "Method", "Outcome", "TrajectoryMatching", "run_loop"]
