"""A whole run within a time budget, with settings that follow from the data, the experts and the
machine."""

from __future__ import annotations

from trajmatch.pipeline.auto.plan import Plan
from trajmatch.pipeline.auto.running import load_sized, plan_within, require_plannable, run_within

__all__ = ["Plan", "load_sized", "plan_within", "require_plannable", "run_within"]
