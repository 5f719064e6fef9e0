"""Settings, and the files they come from."""

from __future__ import annotations

from trajmatch.config.named import NamedValue
from trajmatch.config.optimizers import (
    SGD,
    Adam,
    Constant,
    Cosine,
    Decay,
    OuterOptimizer,
    Schedule,
    TorchOptimizer,
)
from trajmatch.config.ranges import check_ranges, require_range
from trajmatch.config.settings import (
    DSA_STRATEGY,
    Compile,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
    Precision,
    PublishedConfig,
    Storage,
    TuneConfig,
    determining,
    require,
)
from trajmatch.config.toml import from_dict, read_toml, table_of, to_dict, to_toml

__all__ = [
    "DSA_STRATEGY",
    "SGD",
    "Adam",
    "Compile",
    "Constant",
    "Cosine",
    "DataConfig",
    "Decay",
    "DistillConfig",
    "EvaluateConfig",
    "ExpertConfig",
    "NamedValue",
    "NetworkConfig",
    "OuterOptimizer",
    "Precision",
    "PublishedConfig",
    "Schedule",
    "Storage",
    "TorchOptimizer",
    "TuneConfig",
    "check_ranges",
    "determining",
    "from_dict",
    "read_toml",
    "require",
    "require_range",
    "table_of",
    "to_dict",
    "to_toml",
]
