"""The methods that make images, by name."""

from __future__ import annotations

from trajmatch.config import DistillConfig
from trajmatch.distillation.alignment import FeatureAlignment
from trajmatch.distillation.descent import Descent, LabelDescent
from trajmatch.distillation.distribution import DistributionMatching
from trajmatch.distillation.gradient import GradientMatching, SiameseGradientMatching
from trajmatch.distillation.ground import Ground
from trajmatch.distillation.inducing import InducingPoints
from trajmatch.distillation.matching import TrajectoryMatching
from trajmatch.distillation.method import Maker
from trajmatch.errors import SettingError, suggest

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
