"""The methods that make images, by name."""

from __future__ import annotations

from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError, suggest
from trajmatch.methods.base import Method
from trajmatch.methods.cafe import CAFE
from trajmatch.methods.dc import DC, DSA
from trajmatch.methods.dd import DD, LD
from trajmatch.methods.dm import DM
from trajmatch.methods.kip.kip import KIP
from trajmatch.methods.mtt import MTT
from trajmatch.methods.problem import Problem

METHODS: dict[str, type[Method]] = {
    maker.name: maker
    for maker in (
        MTT,
        DM,
        DC,
        DSA,
        CAFE,
        DD,
        LD,
        KIP,
    )
}


def method_class(name: str) -> type[Method]:
    """Raises SettingError, with the nearest name, for an unknown one."""
    if name not in METHODS:
        raise SettingError(f"unknown method '{name}'; {suggest(name, METHODS)}")
    return METHODS[name]


def begin(ground: Problem, config: DistillConfig, *, seed: int) -> Method:
    """The method that `config` names, ready for its first iteration."""
    return method_class(config.method)(ground, config, seed=seed)
