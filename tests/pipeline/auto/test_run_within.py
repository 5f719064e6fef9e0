"""A run within a budget, of tiny networks on the digits: resumed, ended in time, never below real
images by validation."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from trajmatch.config import (
    Cosine,
    DataConfig,
    DistillConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
)
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.methods import DM, MTT
from trajmatch.methods.loop import StepSizeError
from trajmatch.pipeline.auto import load_sized, plan_within, run_within
from trajmatch.pipeline.auto.file import read_plan
from trajmatch.pipeline.auto.pilot import STEPS, train_pilot
from trajmatch.pipeline.auto.running import SIDE
from trajmatch.pipeline.auto.stages import Stages
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.runtime.progress import SILENT, Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_log
from trajmatch.synthetic import SyntheticSet

ONE = Resources(workers=1, threads=1)
START = Recipe(
    network=NetworkConfig(width=4),
    experts=ExpertConfig(experts=2, epochs=2, steps_per_epoch=10, batch=32, lr=0.05),
    method=MTT(syn_steps=3),
    distill=DistillConfig(iterations=20, eval_every=10, eval_networks=1, checkpoint_every=2),
    evaluate=EvaluateConfig(n=1, epochs=5, workers=1),
)
FIXED = (
    "network.width", "experts.epochs", "experts.steps_per_epoch", "experts.batch",
    "experts.experts", "distill.syn_steps", "distill.eval_every", "evaluate.epochs",
)  # fmt: skip


class Messages(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def message(self, text: str) -> None:
        self.lines.append(text)


class Killed(Exception):
    pass


class KilledAt(Messages):
    """Raises when a task has done so much."""

    def __init__(self, task: str, done: int) -> None:
        super().__init__()
        self.task, self.done = task, done

    def update(self, task: str, done: int, total: int, **values: object) -> None:
        if (task, done) == (self.task, self.done):
            raise Killed


def within(budget: float, out: Path, start: Recipe = START, **options) -> dict:
    options = {"fixed": FIXED, "data": tiny.digits(), "resources": ONE, **options}
    return run_within(budget, start, out, **options)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict, list[str]]:
    out, seen = tmp_path_factory.mktemp("within") / "run", Messages()
    result = within(5.0, out, progress=seen)
    return out, result, seen.lines


def test_the_job_ends_with_scores_and_reasons(finished: tuple) -> None:
    out, result, lines = finished
    methods = [score["method"] for score in result["scores"]]
    assert methods[:3] == ["mtt", "random", "herding"]
    assert len(methods) == 4  # and the experts
    document = json.loads((out / "plan.json").read_text())
    assert document["stage"] == "distilled"
    for reason in document["reasons"]:
        assert reason in lines or "herding" in reason
    calibration = result["resolved"]["calibration"]["values"]
    assert result["seconds"] > document["seconds"] > 1
    assert set(calibration) == {"expert_epochs", "max_start_epoch", "step_size"}
    assert result["settings"]["distill"]["step_size"] == calibration["step_size"]
    assert result["settings"]["distill"]["iterations"] == result["last_iteration"]


def test_the_recipe_that_was_carried_out_can_be_run_and_tuned(finished: tuple) -> None:
    out, result, _ = finished
    recipe = load_recipe(str(out / "recipe.toml"))
    assert recipe.distill.iterations == result["last_iteration"]
    assert recipe.distill.init == str(out / "start")
    assert recipe.method.step_size is None  # calibrated again, to the same value
    assert recipe.network.width == 4


def test_it_begins_with_chosen_real_images(finished: tuple) -> None:
    out, result, _ = finished
    start = SyntheticSet.load(out / "start")
    assert start.info["method"] == "herding"
    validations = [line for line in read_log(out / "log.jsonl") if "val_mean" in line]
    assert validations[0]["step"] == 0
    assert result["best_validation"]["mean"] >= validations[0]["val_mean"]


def test_a_finished_run_has_nothing_to_do(finished: tuple) -> None:
    out, result, _ = finished
    before = (out / "checkpoint.safetensors").read_bytes()
    again = within(500.0, out)
    assert again["scores"] == result["scores"]
    assert (out / "checkpoint.safetensors").read_bytes() == before


def test_a_folder_that_was_moved_goes_on(finished: tuple, tmp_path: Path) -> None:
    out, result, _ = finished
    shutil.copytree(out, tmp_path / "moved", ignore=shutil.ignore_patterns(".lock"))
    again = within(500.0, tmp_path / "moved")
    assert again["scores"] == result["scores"]
    assert again["settings"]["distill"]["init"] == str(tmp_path / "moved" / "start")


def test_another_request_does_not_continue_it(finished: tuple) -> None:
    out = finished[0]
    other = dataclasses.replace(START, seed=1)
    with pytest.raises(MismatchError, match="made for seed 0, and this is 1"):
        within(8.0, out, other)
    batch = dataclasses.replace(START, experts=dataclasses.replace(START.experts, batch=16))
    with pytest.raises(MismatchError, match=r"made for batch=32, and this is 16"):
        within(8.0, out, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("task", "done"), [("experts", 3), ("distill", 7)])
def test_a_killed_run_goes_on_with_its_plan(tmp_path: Path, task: str, done: int) -> None:
    with pytest.raises(Killed):
        within(15.0, tmp_path, progress=KilledAt(task, done))
    begun = json.loads((tmp_path / "plan.json").read_text())
    assert begun["stage"] == ("planned" if task == "experts" else "trained")
    result = within(1.0, tmp_path)
    ended = json.loads((tmp_path / "plan.json").read_text())
    for name in ("network", "evaluate", "data"):
        assert begun["recipe"][name] == ended["recipe"][name]
    assert result["last_iteration"] >= (done if task == "distill" else 1)


@pytest.mark.slow
def test_no_time_at_all_still_gives_a_result(tmp_path: Path) -> None:
    result = within(0.01, tmp_path)
    assert result["last_iteration"] >= 1
    assert len(result["scores"]) == 4


def test_a_run_whose_step_size_collapsed_begins_again_lower(tmp_path: Path) -> None:
    """Once, and not where a person gave the step size."""
    seen = Messages()
    stages = Stages(START, tiny.digits(), tmp_path, ONE, seen, time.monotonic() + 5, FIXED)
    for name in ("checkpoint.safetensors", "log.jsonl", "best/set.safetensors", "plan.json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("of the run")
    (tmp_path / "checkpoint.safetensors").unlink()
    error = StepSizeError("the step size fell from 0.01 to 0.002")
    error.first = 0.01
    lower = stages.lower(START, error)
    assert lower.method == dataclasses.replace(START.method, step_size=0.005)
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]
    (line,) = seen.lines
    assert "begun again" in line
    with pytest.raises(StepSizeError, match="fell from"):
        stages.lower(lower, error)


@pytest.mark.slow
def test_a_given_step_size_that_collapses_ends_the_run(tmp_path: Path) -> None:
    fast = dataclasses.replace(START.method, lr_log_step_size=1.0, syn_steps=2, step_size=30.0)
    start = dataclasses.replace(START, method=fast)
    with pytest.raises(StepSizeError, match="fell from 30"):
        within(6.0, tmp_path, start, fixed=(*FIXED, "distill.step_size"))


def test_a_damaged_plan_is_named(tmp_path: Path) -> None:
    for text in ("[]", "{}", '{"request": 3, "stage": "planned", "recipe": {}, "reasons": []}'):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises((FileFormatError, MismatchError), match=r"plan\.json"):
            read_plan(tmp_path, {"data": "x"})
    assert read_plan(tmp_path / "nowhere", {}) is None


@pytest.mark.parametrize(
    ("part", "change", "said"),
    [
        ("distill", {"schedule": Cosine()}, "schedule is cosine, .* give iterations= too"),
        ("method", {"texture": True}, "texture is not planned within a budget"),
        ("evaluate", {"augment": "colour"}, "colour"),
    ],
)
def test_what_cannot_be_planned_is_refused_before_the_pilot(
    tmp_path: Path, part: str, change: dict, said: str
) -> None:
    start = dataclasses.replace(
        START, **{part: dataclasses.replace(getattr(START, part), **change)}
    )
    seen = Messages()
    with pytest.raises(SettingError, match=said):
        within(5.0, tmp_path / "run", start, progress=seen)
    assert seen.lines == []


@pytest.mark.slow
def test_what_is_refused_does_not_block_the_folder(tmp_path: Path) -> None:
    many = dataclasses.replace(START, distill=dataclasses.replace(START.distill, ipc=500))
    with pytest.raises(SettingError, match=r"ipc is 500 and class .* init='noise'"):
        within(1.0, tmp_path / "run", many)
    assert not (tmp_path / "run" / "plan.json").exists()


def test_only_mtt_is_planned(tmp_path: Path) -> None:
    start = dataclasses.replace(START, method=DM())
    with pytest.raises(SettingError, match="method is dm, and only mtt is planned"):
        within(5.0, tmp_path, start)
    with pytest.raises(SettingError, match="only mtt is planned"):
        plan_within(5.0, start, data=tiny.digits())


# -- the pilot -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_pilot_measures_time_accuracy_and_mirroring() -> None:
    pilot = train_pilot(tiny.digits(), batch=32, lr=0.05, seconds=1.0, seed=0, resources=ONE)
    assert pilot.call_seconds > 0
    assert all(0 < rate < 1e-6 for rate in pilot.flop_seconds.values())
    assert pilot.steps == STEPS * len(pilot.accuracies) >= 2 * STEPS
    assert pilot.accuracies[-1] > 40
    assert pilot.mirrored < pilot.accuracies[-1] - 15  # digits
    assert not pilot.flip
    assert pilot.chance == pytest.approx(10, abs=2)
    assert pilot.step_seconds(32, 10**9) > pilot.step_seconds(32, 10**6)


# -- sizes ---------------------------------------------------------------------------------------


def photographs(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (folder / name).mkdir(parents=True)
        for number in range(10):
            width, height = sizes[number % len(sizes)]
            pixels = draw.integers(0, 256, (height, width, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.mark.parametrize(
    ("sizes", "size", "side"),
    [
        ([(40, 30), (30, 50)], None, SIDE),
        ([(100, 90)], None, SIDE),
        ([(100, 100)], 48, 48),
        ([(24, 24)], None, 24),
    ],
)
def test_photographs_of_any_size(
    tmp_path: Path, sizes: list[tuple[int, int]], size: int | None, side: int
) -> None:
    folder, seen = photographs(tmp_path / "photos", sizes), Messages()
    data, config = load_sized(DataConfig(data=str(folder), size=size), seen)
    assert data.train.images.shape[2:] == torch.Size((side, side))
    brought = size is None and side == SIDE
    assert config.size == (SIDE if brought else size)
    assert bool(seen.lines) == brought


def test_what_cannot_be_read_is_refused_as_ever(tmp_path: Path) -> None:
    from trajmatch.errors import DataError

    with pytest.raises(DataError, match="nowhere"):
        load_sized(DataConfig(data=str(tmp_path / "nowhere")), SILENT)
