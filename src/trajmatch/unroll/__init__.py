"""The engine: N differentiable steps of a student and their exact reverse."""

from __future__ import annotations

from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student
from trajmatch.unroll.unroll import (
    EXACT,
    METHODS,
    OuterLoss,
    Plan,
    SegmentDistance,
    UnrolledGradient,
    match_segment,
    plan,
)

__all__ = [
    "EXACT",
    "METHODS",
    "OuterLoss",
    "Plan",
    "Schedule",
    "SegmentDistance",
    "Student",
    "UnrolledGradient",
    "match_segment",
    "plan",
]
