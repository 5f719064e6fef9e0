"""Settings of a method, searched on validation images with Optuna."""

from trajmatch.studies.tuning.running import BEST, tune
from trajmatch.studies.tuning.space import SearchRange, space_of

__all__ = ["BEST", "SearchRange", "space_of", "tune"]
