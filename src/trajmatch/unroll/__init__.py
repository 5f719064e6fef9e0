"""The engine: N differentiable steps of a student and their exact reverse."""

from __future__ import annotations

from trajmatch.unroll.schedule import Schedule
from trajmatch.unroll.student import Student
from trajmatch.unroll.unroll import (
    EXACT,
    METHODS,
    Plan,
    Question,
    SegmentDistance,
    WalkGradient,
    match_segment,
    plan,
    walk,
)

__all__ = [
    "EXACT",
    "METHODS",
    "Plan",
    "Question",
    "Schedule",
    "SegmentDistance",
    "Student",
    "WalkGradient",
    "match_segment",
    "plan",
    "walk",
]
