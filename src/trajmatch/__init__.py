"""Dataset distillation by matching training trajectories.

The public names load what they need when they are first used, so that `import trajmatch` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trajmatch._version import __version__

_HOMES = {
    "ImageDataset": "trajmatch.data",
    "SyntheticSet": "trajmatch.synthetic",
    "build_network": "trajmatch.networks",
    "distill": "trajmatch.pipeline.distill",
    "evaluate": "trajmatch.pipeline.evaluate",
    "load_data": "trajmatch.data",
    "load_distilled": "trajmatch.synthetic",
    "match_segment": "trajmatch.unroll",
    "merge": "trajmatch.synthetic",
    "open_experts": "trajmatch.experts",
    "parameter_vector": "trajmatch.networks.functional",
    "run_within": "trajmatch.pipeline.auto",
    "select_coreset": "trajmatch.pipeline.select",
    "train_experts": "trajmatch.pipeline.experts",
    "tune": "trajmatch.studies.tuning",
}

__all__ = ["__version__", *sorted(_HOMES)]

if TYPE_CHECKING:
    from trajmatch.data import ImageDataset, load_data
    from trajmatch.experts import open_experts
    from trajmatch.networks import build_network
    from trajmatch.networks.functional import parameter_vector
    from trajmatch.pipeline.auto import run_within
    from trajmatch.pipeline.distill import distill
    from trajmatch.pipeline.evaluate import evaluate
    from trajmatch.pipeline.experts import train_experts
    from trajmatch.pipeline.select import select_coreset
    from trajmatch.studies.tuning import tune
    from trajmatch.synthetic import SyntheticSet, load_distilled, merge
    from trajmatch.unroll import match_segment


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'trajmatch' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
