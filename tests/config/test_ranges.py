"""Every numeric setting has a range, and refuses what lies outside."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import math
import pkgutil
from pathlib import Path
from typing import Any

import pytest

import trajmatch.cli
import trajmatch.config
from trajmatch.config import NamedValue, check_ranges, from_dict, read_toml, require_range
from trajmatch.config.ranges import RANGES, Range, numeric_fields
from trajmatch.config.settings import ExpertConfig
from trajmatch.errors import SettingError
from trajmatch.methods import METHODS
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.executor import Processes
from trajmatch.runtime.resources import Resources
from trajmatch.unroll.optimizers import InnerOptimizer


def kinds() -> list[type[Any]]:
    """Every dataclass of settings: of config/ and cli/, methods, optimizers, resources, recipes."""
    found = {Recipe, Resources, Processes, *METHODS.values(), *InnerOptimizer.members.values()}
    for package in (trajmatch.config, trajmatch.cli):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            members = vars(importlib.import_module(module.name)).values()
            found |= {
                kind
                for kind in members
                if inspect.isclass(kind)
                and dataclasses.is_dataclass(kind)
                and kind.__module__.startswith(("trajmatch.config.", "trajmatch.cli."))
                and kind is not Range
            }
    return sorted(found, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")


FIELDS = [(kind, name) for kind in kinds() for name in numeric_fields(kind)]


def with_value(kind: type[Any], name: str, value: Any) -> Any:
    """An unchecked instance: the type checks of the tests come before ours in a constructor."""
    instance = object.__new__(kind)
    for field in dataclasses.fields(kind):
        default = None if field.default is dataclasses.MISSING else field.default
        object.__setattr__(instance, field.name, default)
    default = getattr(instance, name)
    object.__setattr__(instance, name, (value, value) if isinstance(default, tuple) else value)
    return instance


def test_all_kinds_are_found() -> None:
    names = {f"{kind.__module__}.{kind.__name__}.{name}" for kind, name in FIELDS}
    assert {
        "trajmatch.config.settings.EvaluateConfig.momentum",
        "trajmatch.config.settings.NetworkConfig.width",
        "trajmatch.config.optimizers.Adam.betas",
        "trajmatch.methods.mtt.MTT.skip_loss",
        "trajmatch.unroll.optimizers.Momentum.momentum",
        "trajmatch.runtime.resources.Resources.threads",
        "trajmatch.cli.study.Flags.seeds",
        "trajmatch.cli.select.Flags.lr",
        "trajmatch.cli.run.Flags.seed",
    } <= names
    assert len(names) > 100


@pytest.mark.parametrize(("kind", "name"), FIELDS, ids=lambda part: getattr(part, "__name__", part))
def test_every_number_has_a_range_and_is_refused_outside(kind: type[Any], name: str) -> None:
    limits = RANGES[name]
    assert math.isfinite(limits.least)
    assert math.isfinite(limits.most)
    values = [math.nan, math.inf, -math.inf, 10**30, 10**400]
    values += [value for value in (-1, -1e-9) if value not in limits]
    for value in values:
        with pytest.raises(SettingError) as error:
            with_value(kind, name, value).__post_init__()
        message = str(error.value)
        assert message.startswith(f"{name} is ")
        assert message.endswith(str(limits))
        assert len(message) < 200


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("momentum", -1.0, "momentum is -1.0; it must be at least 0 and below 1"),
        ("momentum", 5.0, "momentum is 5.0; it must be at least 0 and below 1"),
        ("weight_decay", -5.0, "weight_decay is -5.0; it must be at least 0 and at most 1000000"),
        ("skip_loss", 1e-9, "skip_loss is 1e-09; it must be at least 0.01 and"),
        ("threads", 10**6, "threads is 1000000; it must be at least 1 and at most 1024"),
        ("threads", 0, "threads is 0; it must be at least 1 and at most 1024"),
        ("lr_lr", 1e30, "lr_lr is 1e+30; it must be at least 0 and at most 1000000"),
        ("size", 100_000, "size is 100000; it must be at least 1 and at most 16384"),
        ("seed", -1, "seed is -1; it must be at least 0 and at most 9223372036854775807"),
        ("epochs", 1.5, "epochs is 1.5; it must be a whole number, at least 1"),
        ("epochs", "x", "epochs is 'x'; it must be a whole number, at least 1"),
        ("epochs", True, "epochs is True; it must be a whole number"),
    ],
)
def test_the_message_names_setting_value_and_range(name: str, value: Any, words: str) -> None:
    with pytest.raises(SettingError) as error:
        require_range(
            name, value, integer=name not in ("momentum", "weight_decay", "skip_loss", "lr_lr")
        )
    assert str(error.value).startswith(words)


def test_ends_belong_to_a_range_unless_it_is_open() -> None:
    for value in (0, 1):
        assert value in Range(0, 1)
        assert value not in Range(0, 1, above=True, below=True)
    Resources(threads=8, workers=1024)  # more than this machine's cores is allowed


def test_a_number_of_another_name_is_finite_and_fits_in_64_bits() -> None:
    @dataclasses.dataclass(frozen=True)
    class Other:
        temperature: float = 1.0
        shots: int | None = None
        names: tuple[str, ...] = ()

    check_ranges(Other(temperature=-5.0, shots=-3))
    for name, value in (("temperature", math.nan), ("temperature", math.inf), ("shots", 2**63)):
        with pytest.raises(SettingError, match=f"{name} is "):
            check_ranges(with_value(Other, name, value))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("seed = 9223372036854775808", "a whole number must fit in 64 bits"),
        ("[experts]\nlr = 1" + "0" * 400, "experts.lr is a whole number of 1329 bits"),
        ("[experts]\nepochs = 1" + "0" * 5000, "cannot read settings from"),
        ("[experts]\nlr = inf", "lr is inf; it must be above 0 and at most 1000000"),
        ("[evaluate]\nweight_decay = nan", "weight_decay is nan; it must be at least 0"),
        ("[distill]\nlr_img = -inf", "lr_img is -inf; it must be above 0"),
        ("[distill]\nschedule = 'cosine(end=1e999)'", "end is inf; it must be at least 0"),
        ("a = " + "[" * 5000, "cannot read settings from"),
    ],
)
def test_a_file_with_such_a_number_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "wild.toml"
    path.write_text(text)
    with pytest.raises(SettingError) as error:
        read_toml(path, Recipe.from_dict)
    assert str(path) in str(error.value)
    assert words in str(error.value)
    assert len(str(error.value)) < 400


def test_a_byte_order_mark_is_read_over(tmp_path: Path) -> None:
    path = tmp_path / "windows.toml"
    path.write_bytes(b"\xef\xbb\xbf[experts]\r\nexperts = 3\r\n")
    assert read_toml(path, Recipe.from_dict).experts == ExpertConfig(experts=3)


def test_a_whole_number_passes_for_a_float() -> None:
    assert from_dict(ExpertConfig, {"lr": 1}).lr == 1.0


def test_options_of_torch_optimizers_are_finite() -> None:
    from trajmatch.config import OuterOptimizer

    assert issubclass(OuterOptimizer, NamedValue)
    for text in ("AdamW(weight_decay=1e999)", "AdamW(weight_decay=-1e999)", "RMSprop(eps=1e300)"):
        with pytest.raises(SettingError, match=r"(weight_decay|eps) is "):
            OuterOptimizer.parse(text)
