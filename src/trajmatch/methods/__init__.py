"""Methods that learn images, as values, over one outer loop; coresets choose real ones instead."""

from __future__ import annotations

from trajmatch.methods.base import Canvas, Conditions, Method
from trajmatch.methods.cafe import CAFE
from trajmatch.methods.dc import DC, DSA
from trajmatch.methods.dd import DD
from trajmatch.methods.dm import DM
from trajmatch.methods.kip import KIP
from trajmatch.methods.ld import LD
from trajmatch.methods.loop import run_loop
from trajmatch.methods.mtt import MTT
from trajmatch.methods.parameters import Estimate, SyntheticParameters
from trajmatch.methods.problem import Problem
from trajmatch.methods.registry import METHODS, from_settings, to_settings
from trajmatch.methods.state import Distillation, Outcome
from trajmatch.methods.unrolled import UnrolledMethod

__all__ = [
    "CAFE",
    "DC",
    "DD",
    "DM",
    "DSA",
    "KIP",
    "LD",
    "METHODS",
    "MTT",
    "Canvas",
    "Conditions",
    "Distillation",
    "Estimate",
    "Method",
    "Outcome",
    "Problem",
    "SyntheticParameters",
    "UnrolledMethod",
    "from_settings",
    "run_loop",
    "to_settings",
]
