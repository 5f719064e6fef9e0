"""The methods that make images, by name."""

from __future__ import annotations

from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError, suggest
from trajmatch.methods.base import Maker
from trajmatch.methods.cafe import FeatureAlignment
from trajmatch.methods.dc import GradientMatching, SiameseGradientMatching
from trajmatch.methods.dd import Descent, LabelDescent
from trajmatch.methods.dm import DistributionMatching
from trajmatch.methods.kip.kip import InducingPoints
from trajmatch.methods.mtt import TrajectoryMatching
from trajmatch.methods.problem import Ground

MAKERS: dict[str, type[Maker]] = {
    maker.name: maker
    for maker in (
        TrajectoryMatching,
        DistributionMatching,
        GradientMatching,
        SiameseGradientMatching,
        FeatureAlignment,
        Descent,
        LabelDescent,
        InducingPoints,
    )
}


def maker_of(name: str) -> type[Maker]:
    """Raises SettingError, with the nearest name, for an unknown one."""
    if name not in MAKERS:
        raise SettingError(f"unknown method '{name}'; {suggest(name, MAKERS)}")
    return MAKERS[name]


def begin(ground: Ground, config: DistillConfig, *, seed: int) -> Maker:
    """The method that `config` names, ready for its first iteration."""
    return maker_of(config.method)(ground, config, seed=seed)
