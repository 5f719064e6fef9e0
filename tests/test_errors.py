"""Messages name a setting as whoever reads them gives it: an argument in Python, a flag on the
command line."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
import trajmatch
from trajmatch import cli, pipeline
from trajmatch.config import DistillConfig, EvaluateConfig, ExpertConfig
from trajmatch.data import load_data
from trajmatch.errors import SettingError, TrajmatchError, naming_flags, spelled
from trajmatch.methods import DC, DSA, MTT

EXPERTS = f"experts --device cpu {tiny.NETWORK_WORDS} {tiny.EXPERT_WORDS}"
DISTILL = f"distill --device cpu {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS}"


def distill(method: MTT = tiny.METHOD, **config: object) -> object:
    loop = dataclasses.replace(tiny.DISTILL, **config)
    return pipeline.distill(tiny.digits(), method, tiny.library(), "run", config=loop)


def with_method(**changes: object) -> object:
    return distill(dataclasses.replace(tiny.METHOD, **changes))


def train(**options: object) -> object:
    options = {"network": tiny.NETWORK, "config": tiny.EXPERTS, **options}
    return pipeline.train_experts(tiny.digits(), tiny.library().path, **options)


CASES: dict[str, tuple[Callable[[], object], str, str, str]] = {
    "short experts": (
        lambda: with_method(max_start_epoch=6),
        "use max_start_epoch=3 or train experts with epochs=6",
        f"{DISTILL} --experts LIBRARY --max-start-epoch 6",
        "use --max-start-epoch 3 or train experts with --epochs 6",
    ),
    "no experts": (
        lambda: pipeline.distill(tiny.digits(), tiny.METHOD, out="run", config=tiny.DISTILL),
        "mtt matches experts; give experts= a library of `trajmatch experts` (train_experts)",
        "distill --experts nowhere",
        "give the --out of `trajmatch experts`",
    ),
    "ipc": (
        lambda: distill(ipc=126),
        "or begin with init='noise'",
        f"{DISTILL} --experts LIBRARY --ipc 126",
        "or begin with --init noise",
    ),
    "labels": (
        lambda: with_method(init_labels="experts"),
        "no labels are learned; add soft_labels=True",
        f"{DISTILL} --experts LIBRARY --init-labels experts",
        "no labels are learned; add --soft-labels",
    ),
    "canvas": (
        lambda: with_method(texture=True, init_labels="experts", soft_labels=True),
        "leave it or texture= out",
        f"{DISTILL} --experts LIBRARY --texture --soft-labels --init-labels experts",
        "leave it or --texture out",
    ),
    "another run's data": (
        lambda: pipeline.distill(
            load_data("digits", val_fraction=0.2),
            tiny.METHOD,
            tiny.library(),
            "run",
            config=tiny.DISTILL,
        ),
        "give the same data=, classes=, size= and val_fraction=, or train",
        f"{DISTILL} --experts LIBRARY --val-fraction 0.2",
        "give the same --data, --classes, --size and --val-fraction, or train",
    ),
    "whitening": (
        lambda: train(whitening="zca"),
        "use whitening='normalize', or train experts with whitening='zca'",
        f"{EXPERTS} --whitening zca --out LIBRARY",
        "use --whitening normalize, or train experts with --whitening zca",
    ),
    "another library": (
        lambda: train(config=dataclasses.replace(tiny.EXPERTS, lr=0.1)),
        "use lr=0.05 or another out=",
        f"{EXPERTS} --lr 0.1 --out LIBRARY",
        "use --lr 0.05 or another --out",
    ),
    "norm": (
        lambda: pipeline.train_experts(
            tiny.digits(), "experts", network=dataclasses.replace(tiny.NETWORK, norm="batch")
        ),
        "use norm='instance', group, layer or none",
        f"{EXPERTS} --norm batch --out experts",
        "use --norm instance, group, layer or none",
    ),
    "features": (
        lambda: trajmatch.select_coreset("herding", tiny.digits(), 1),
        "give experts= a library",
        "select --method herding",
        "give --experts a library",
    ),
    "loops": (
        lambda: pipeline.distill(tiny.digits(), DC(), config=DistillConfig(ipc=3), out="run"),
        "give outer_loop= and inner_loop=, for example 10 and 50",
        "distill --method dc --ipc 3 --out run",
        "give --outer-loop and --inner-loop, for example 10 and 50",
    ),
    "another method": (
        lambda: pipeline.distill(tiny.digits(), DSA(augment=None), out="run"),
        "use method='dc'",
        "distill --method dsa --augment none --out run",
        "use --method dc",
    ),
    "data": (
        lambda: load_data("cifar10"),
        "as data_root= or TRAJMATCH_DATA",
        "experts --data cifar10",
        "as --data-root or TRAJMATCH_DATA",
    ),
    "no library": (
        lambda: trajmatch.open_experts("nowhere"),
        "give the out= of `trajmatch experts` (train_experts)",
        "inspect nowhere",
        "give the --out of experts or distill",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_message_names_arguments_in_python_and_flags_on_the_line(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    call, in_python, line, on_line = CASES[name]
    with pytest.raises(TrajmatchError) as error:
        call()
    assert in_python in str(error.value)
    assert not re.search(r"--[a-z]", re.sub("`[^`]*`", "", str(error.value)))
    assert cli.main(line.replace("LIBRARY", str(tiny.library().path)).split()) == 2
    assert on_line in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_message_inside_another_is_spelled_alike() -> None:
    inner = SettingError("give --size 64")
    assert str(SettingError(f"mine.toml: {inner}")) == "mine.toml: give size=64"
    with naming_flags():
        assert str(SettingError(f"mine.toml: {inner}")) == "mine.toml: give --size 64"


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("use --lr-img 1e-3.", "use lr_img=1e-3."),
        ("--epochs 3x, --out, (--sets)", "epochs= 3x, out=, (sets=)"),
        ("a --- b -- c --9", "a --- b -- c --9"),
        ("give --no-test", "give test=False"),
        ("give --size=64 or --lr=0.5.", "give size=64 or lr=0.5."),
        ("`trajmatch experts --out x`: --out", "`trajmatch experts --out x`: out="),
        ("experts=3 of abc, norm='none'", "experts=3 of abc, norm='none'"),
    ],
)
def test_what_is_a_flag_in_a_message(text: str, arguments: str) -> None:
    assert spelled(text) == arguments


def test_experts_are_not_trained_on_data_that_distill_would_refuse(tmp_path: Path) -> None:
    """With a validation split cut later the experts would be those of other data."""
    without = dataclasses.replace(tiny.digits(), val=None)
    said = r"no validation images, .*; use data\.with_validation\(0\.1\) for the experts"
    out = tmp_path / "out"
    with pytest.raises(SettingError, match=said):
        trajmatch.train_experts(without, out, network=tiny.NETWORK, config=ExpertConfig(epochs=1))
    with pytest.raises(SettingError, match=said):
        pipeline.run(pipeline.load_recipe("digits-ipc1"), out, data=without)
    with pytest.raises(SettingError, match=said):
        pipeline.distill(without, DC(), out=out, evaluation=EvaluateConfig(n=1))
    assert not out.exists()
