"""Sets that are made: methods that learn images, over one shared outer loop."""

from __future__ import annotations

from trajmatch.methods.base import Method
from trajmatch.methods.kip.kip import KIP
from trajmatch.methods.loop import Outcome, run_loop
from trajmatch.methods.mtt import MTT
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.registry import METHODS, begin, method_class

__all__ = [
    "KIP",
    "METHODS",
    "Estimate",
    "Method",
    "Outcome",
    "Problem",
    "SyntheticParameters",
]
__all__ += ["MTT", "begin", "method_class", "run_loop"]
