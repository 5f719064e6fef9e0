"""The engine: N differentiable steps of a student and their exact reverse."""

from __future__ import annotations

from trajmatch.unroll.optimizers import SGD, Adam, InnerOptimizer, Momentum
from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.segment import SegmentDistance, match_segment
from trajmatch.unroll.student import Student
from trajmatch.unroll.unroll import EXACT, METHODS, OuterLoss, Plan, UnrolledGradient, plan

__all__ = [
    "EXACT",
    "METHODS",
    "SGD",
    "Adam",
    "InnerOptimizer",
    "Momentum",
    "OuterLoss",
    "Plan",
    "Schedule",
    "SegmentDistance",
    "Student",
    "UnrolledGradient",
    "match_segment",
    "plan",
]
