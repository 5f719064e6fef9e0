"""What a person may set."""

from __future__ import annotations

from trajmatch.config.settings import (
    DSA_STRATEGY,
    Compile,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    Gradient,
    Initial,
    InitialLabels,
    NetworkConfig,
    Precision,
    PublishedConfig,
    RunConfig,
    Storage,
    WhiteningName,
)
from trajmatch.config.toml import from_dict, read_toml, to_dict

__all__ = [
    "DSA_STRATEGY",
    "Compile",
    "DataConfig",
    "DistillConfig",
    "EvaluateConfig",
    "ExpertConfig",
    "Gradient",
    "Initial",
    "InitialLabels",
    "NetworkConfig",
    "Precision",
    "PublishedConfig",
    "RunConfig",
    "Storage",
    "WhiteningName",
    "from_dict",
    "read_toml",
    "to_dict",
]
