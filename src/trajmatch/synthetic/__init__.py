"""Synthetic sets: a few images, their labels and a step size, in memory and as files."""

from __future__ import annotations

from trajmatch.synthetic.merge import merge, rewhiten
from trajmatch.synthetic.set import SyntheticSet, load_distilled

__all__ = ["SyntheticSet", "load_distilled", "merge", "rewhiten"]
