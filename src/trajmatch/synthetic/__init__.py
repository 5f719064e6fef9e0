"""The product: a few images, their labels and a step size, as a data set and as files."""

from __future__ import annotations

from trajmatch.synthetic.set import SyntheticSet, load_distilled

__all__ = ["SyntheticSet", "load_distilled"]
