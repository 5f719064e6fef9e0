"""Tuning: what is searched, in which order, and that a killed search goes on as if it never was."""

from __future__ import annotations

import dataclasses
import functools
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import tiny
from trajmatch.config import DataConfig, TuneConfig
from trajmatch.data import ImageDataset
from trajmatch.data.dataset import Split
from trajmatch.errors import FileFormatError, MismatchError, MissingExtraError, SettingError
from trajmatch.methods import DM, LD, METHODS, MTT
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.runtime.progress import Silent
from trajmatch.storage.results import TuningResult, load_result
from trajmatch.studies.tuning import BEST, SearchRange, space_of, tune
from trajmatch.studies.tuning.journal import STARTUP, Journal, Place
from trajmatch.studies.tuning.running import best_of, finished_rows
from trajmatch.studies.tuning.space import settings_of
from trajmatch.studies.tuning.trial import Job, run_place
from trajmatch.synthetic import load_distilled

pytest.importorskip("optuna")

RECIPE = Recipe(
    data=DataConfig(whitening="normalize"),
    network=tiny.NETWORK,
    experts=tiny.EXPERTS,
    distill=dataclasses.replace(tiny.DISTILL, iterations=2, eval_every=1, eval_networks=1),
    method=dataclasses.replace(tiny.METHOD, syn_steps=2),
    evaluate=tiny.EVALUATE,
)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


# -- what is searched ----------------------------------------------------------------------------


def test_the_ranges_of_mtt_lie_around_the_recipe() -> None:
    method = MTT(lr_img=2.0, syn_steps=20, expert_epochs=3, step_size=0.02, lr_lr=1e-6)
    found = space_of(Recipe(method=method), 20)
    assert {name: str(one) for name, one in found.items()} == {
        "lr_img": "0.2..20 (log)",
        "syn_steps": "10..40 (log)",
        "expert_epochs": "1..6",
        "max_start_epoch": "1..20",
        "step_size": "0.002..0.2 (log)",
        "lr_lr": "1e-7..1e-5 (log)".replace("1e-7", "1.00e-7").replace("1e-5", "1.00e-5"),
        "ema": "0|0.9|0.99",
    }
    assert found["syn_steps"].integer
    assert not found["lr_img"].integer


@pytest.mark.parametrize("name", METHODS)
def test_every_method_has_something_to_search(name: str) -> None:
    """Its own settings lie in the ranges, so that the first trial counts for the search."""
    recipe = dataclasses.replace(Recipe(), method=METHODS[name]())
    found = space_of(recipe, 50)
    assert len(found) >= 2
    for setting, one in found.items():
        value = getattr(recipe.method, setting, recipe.distill.ema)
        assert value is None or value in one, setting  # None: the run's own


def test_rates_that_change_nothing_are_not_searched() -> None:
    fixed = space_of(Recipe(method=MTT(lr_lr=0.0)), 50)
    assert "lr_lr" not in fixed
    assert "lr_label" not in fixed
    assert "lr_label" in space_of(Recipe(method=MTT(soft_labels=True)), 50)
    assert "lr_img" not in space_of(Recipe(method=LD()), 50)
    assert set(space_of(Recipe(method=DM()), None)) == {"lr_img", "ema"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibrated(MTT):
    """Leaves settings to the run."""

    name = "calibrated"

    syn_steps: int | None = None  # type: ignore[assignment]
    expert_epochs: int | None = None  # type: ignore[assignment]
    max_start_epoch: int | None = None  # type: ignore[assignment]
    step_size: float | None = None  # type: ignore[assignment]
    lr_lr: float | None = None  # type: ignore[assignment]
    lr_log_step_size: float = 0.01


def test_what_the_recipe_leaves_to_the_run_has_ranges_of_its_own() -> None:
    recipe = Recipe(method=Calibrated())
    found = space_of(recipe, 8)
    assert {"lr_log_step_size", "syn_steps", "step_size"} <= set(found)
    assert "lr_lr" not in found
    assert str(found["expert_epochs"]) == "1..4"
    assert str(found["step_size"]) == "0.001..0.1 (log)"
    assert "lr_log_step_size" not in space_of(recipe, 8, "lr_lr=1e-8..1e-6")


def test_search_narrows_sets_and_adds() -> None:
    found = space_of(RECIPE, 50, "lr-img=0.01..1, syn_steps=10..60,ema=0|0.5,batch_syn=5")
    assert found["lr_img"] == SearchRange(0.01, 1.0, log=True)
    assert found["syn_steps"] == SearchRange(10, 60, log=True, integer=True)
    assert found["ema"] == SearchRange(choices=(0.0, 0.5))
    assert found["batch_syn"].fixed


@pytest.mark.parametrize(
    ("search", "said"),
    [
        ("lr_img", "search= has 'lr_img'; write NAME=LOW..HIGH"),
        ("lr_imgs=1..2", "'lr_imgs', no number among mtt's settings; did you mean 'lr_img'"),
        ("lr_img=2..1", "from high to low"),
        ("lr_img=1..", "write both ends"),
        ("lr_img=one", "'one' for lr_img; give a number"),
        ("lr_img=0..1", "lr_img is 0.0; it must be above 0"),
        ("syn_steps=1.5..3", "'1.5' for syn_steps; give a whole number"),
        ("ema=0|1", "ema is 1.0; it must be at least 0 and below 1"),
        ("ema=0|0", "a value that stands twice"),
        ("ema=0,ema=0.5", "ema twice"),
        ("iterations=10..20", "all trials share; give it as iterations="),
        ("expert_epochs=2..60", "the experts have 50 epochs; search up to 50"),
        ("augment=none", "no number among"),
        ("lr_img=nan..1", "lr_img is nan"),
    ],
)
def test_what_cannot_be_searched(search: str, said: str) -> None:
    with pytest.raises(SettingError, match="search") as caught:
        space_of(RECIPE, 50, search)
    assert said in str(caught.value)


def test_segments_end_within_the_experts() -> None:
    assert settings_of({"max_start_epoch": 9}, Recipe(method=MTT(expert_epochs=4)), 10) == {
        "max_start_epoch": 7
    }
    assert settings_of({"lr_img": 1.0}, Recipe(), 10) == {"lr_img": 1.0}


# -- the journal ---------------------------------------------------------------------------------


def journal(out: Path, **ranges: SearchRange) -> Journal:
    return Journal(out, 0, ranges or {"lr_img": SearchRange(0.1, 10.0, log=True)})


def filled(one: Journal, count: int, value: float = 50.0, reported: int = 1) -> list[Any]:
    """Trials told without distilling; their values."""
    found = []
    for place in one.open_places(count):
        trial = one.draw(place, {"lr_img": 1.0})
        trial.report(value, reported)
        trial.study.tell(trial, value - 1 / (1 + trial.params["lr_img"]))
        found.append(trial.params)
    return found


def test_a_search_goes_on_as_if_it_was_never_killed(tmp_path: Path) -> None:
    """Killed in its third trial, after two validations of it; then continued in two calls."""
    alone, killed = (journal(tmp_path / name) for name in ("alone", "killed"))
    for one in (alone, killed):
        one.out.mkdir()
    expected = filled(alone, 14)
    assert expected[0] == {"lr_img": 1.0}
    begun = filled(killed, 2)
    trial = killed.draw(Place(2), {"lr_img": 1.0})
    trial.report(7.0, 3)
    again = killed.open_places(6)
    assert [place.number for place in again] == [2, 3, 4, 5]
    assert again[0] == Place(2, trial.params, {3: 7.0})
    begun += filled(killed, 6)
    begun += filled(killed, 14)
    assert begun == expected
    states = [one.state.name for one in killed.study().trials]
    assert states.count("FAIL") == 1
    assert states.count("COMPLETE") == 14
    assert [number for number, _ in killed.finished()] == list(range(14))
    (third,) = [one for number, one in killed.finished() if number == 2]
    assert third.intermediate_values == {3: 7.0, 1: 50.0}


def test_own_settings_out_of_the_ranges_are_tried_all_the_same(tmp_path: Path) -> None:
    one = journal(tmp_path, lr_img=SearchRange(5.0, 9.0), ema=SearchRange(choices=(0.0, 0.9)))
    assert one.draw(Place(0), {"lr_img": 1.0, "ema": 0.0}).params == {"ema": 0.0}
    assert set(one.draw(Place(1), {"lr_img": 1.0, "ema": 0.0}).params) == {"lr_img", "ema"}


def test_importance_needs_four_trials_that_differ(tmp_path: Path) -> None:
    ranges = {"lr_img": SearchRange(0.1, 10.0, log=True), "ema": SearchRange(choices=(0.0, 0.9))}
    one = journal(tmp_path, **ranges)
    for place in one.open_places(4):
        trial = one.draw(place, {"lr_img": 1.0, "ema": 0.0})
        trial.study.tell(trial, trial.params["lr_img"])
        assert bool(one.importance()) == (place.number >= 3)
    found = one.importance()
    assert list(found)[0] == "lr_img"  # noqa: RUF015
    assert sum(found.values()) == pytest.approx(1.0)


def test_a_journal_of_other_settings_or_damaged_is_refused(tmp_path: Path) -> None:
    one = journal(tmp_path)
    one.begin({"distill": {"lr_img": 10.0}, "seed": 0})
    one.begin({"distill": {"lr_img": 10.0}, "seed": 0})
    with pytest.raises(MismatchError, match=r"distill\.lr_img 10\.0 where this asks for 3\.0"):
        one.begin({"distill": {"lr_img": 3.0}, "seed": 0})
    (tmp_path / "study.journal").write_text("{nonsense\n\n{}\n", encoding="utf-8")
    with pytest.raises(FileFormatError, match=r"study\.journal is damaged"):
        one.begin({})


# -- trials --------------------------------------------------------------------------------------


def job(out: Path, **ranges: SearchRange) -> Job:
    return Job(
        recipe=RECIPE,
        journal=journal(out, **ranges),
        data=tiny.digits(),
        experts=tiny.library().path,
        epochs=3,
        device="cpu",
        threads=None,
        deadline=None,
        first=0,
    )


def test_a_trial_below_the_median_is_stopped_and_its_folder_is_sound(tmp_path: Path) -> None:
    work = job(tmp_path)
    filled(work.journal, STARTUP, value=99.0)
    assert run_place(work, Place(STARTUP))
    row = finished_rows(work)[-1]
    assert (row["state"], row["iteration"], row["error"]) == ("pruned", 1, "")
    folder = work.folder(STARTUP)
    assert load_distilled(folder / "best").info["seed"] == 0
    assert not (folder / "result.json").exists()
    # An ordinary distillation can go on there.
    recipe = work.recipe_of(STARTUP, row["settings"])
    loop = {"iterations": 2, "eval_every": 1, "eval_networks": 1}
    outcome = tiny.distill(folder, recipe.method, tiny.library(), **loop)
    assert outcome.iterations == 2


def test_a_trial_that_was_killed_when_it_was_to_be_stopped_is_stopped(tmp_path: Path) -> None:
    work = job(tmp_path)
    filled(work.journal, STARTUP, value=99.0)
    work.journal.draw(Place(STARTUP), {"lr_img": 1.0}).report(7.0, 1)
    (place,) = work.journal.open_places(STARTUP + 1)
    assert run_place(work, place)
    row = finished_rows(work)[-1]
    assert (row["state"], row["iteration"]) == ("pruned", 1)
    assert load_distilled(work.folder(STARTUP) / "best").info["seed"] == 0


def test_settings_that_fail_are_a_failed_trial(tmp_path: Path) -> None:
    work = job(tmp_path, batch_syn=SearchRange(choices=(999,)))
    assert run_place(work, Place(1))
    (row,) = finished_rows(work)
    assert row["state"] == "failed"
    assert "batch_syn is 999" in row["error"]
    assert best_of([row]) is None
    assert work.journal.open_places(2) == [Place(0)]


def test_no_trial_begins_when_the_budget_is_used(tmp_path: Path) -> None:
    work = dataclasses.replace(job(tmp_path), deadline=time.time() - 1, first=3)
    assert not run_place(work, Place(4))
    assert work.journal.finished() == []


# -- all of it -----------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Unseen(Split):
    """Images that may not be looked at."""

    def __post_init__(self) -> None:
        pass

    def __len__(self) -> int:
        return len(self.labels)

    def __getattribute__(self, name: str) -> Any:
        if name == "images":
            raise AssertionError("a test image was looked at")
        return super().__getattribute__(name)


def untestable() -> ImageDataset:
    """The digits, whose test images raise; the fingerprint is taken before."""
    data = dataclasses.replace(tiny.digits())
    assert data.fingerprint == tiny.digits().fingerprint
    test = data.test
    object.__setattr__(data, "test", Unseen(test.images, test.labels))
    return data


class KilledIn(Silent):
    """Ends the call in the middle of a trial, after an iteration, as Ctrl-C does."""

    def __init__(self, number: int) -> None:
        self.number = number

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        if task == "iterations" and done == 2 * self.number + 1:
            raise KeyboardInterrupt


def plain(result: dict[str, Any]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result["trials"]]


def test_a_tuning_is_resumed_and_gives_a_recipe(tmp_path: Path) -> None:
    data = untestable()
    search = functools.partial(tune, RECIPE, data=data, experts=tiny.library())
    alone = search(tmp_path / "alone", TuneConfig(trials=3))
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "killed", TuneConfig(trials=2), progress=KilledIn(1))
    result = search(tmp_path / "killed", TuneConfig(trials=3))
    assert plain(result) == plain(alone)
    assert [row["state"] for row in result["trials"]] == ["complete"] * 3
    first, best = result["trials"][0], result["trials"][result["best"]]
    own = {name: getattr(RECIPE.method, name, RECIPE.distill.ema) for name in first["settings"]}
    assert first["settings"] == own
    assert best["mean"] >= first["mean"]

    found = load_recipe(str(tmp_path / "alone" / BEST))
    assert (found.name, found.evaluate, found.experts) == (
        "digits-tuned", RECIPE.evaluate, RECIPE.experts,
    )  # fmt: skip
    changes = {} if alone["best"] == 0 else alone["trials"][alone["best"]]["settings"]
    assert found.method == RECIPE.with_method(**changes).method
    assert found.distill == RECIPE.with_method(**changes).distill
    typed = load_result(tmp_path / "alone")
    assert isinstance(typed, TuningResult)
    assert (tmp_path / "alone" / typed.best_folder / "distilled.json").is_file()
    assert typed.importance == {}
    with pytest.raises(MismatchError, match="holds a tuning with seed 0 where this asks for 1"):
        tune(
            dataclasses.replace(RECIPE, seed=1),
            tmp_path / "alone",
            data=tiny.digits(),
            experts=tiny.library(),
        )


def test_without_optuna(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'trajmatch\[tune\]'"):
        tune(RECIPE, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_workers_share_the_trials(tmp_path: Path) -> None:
    """Without experts; as many trials as asked for, each in its folder; before that one, as there
    is no time for more."""
    recipe = dataclasses.replace(RECIPE, method=DM())
    from trajmatch.runtime.resources import Resources

    config = TuneConfig(trials=5, search="lr_img=0.1..10")
    spent = dataclasses.replace(config, budget="0.001s")
    assert len(tune(recipe, tmp_path / "out", spent, data=tiny.digits())["trials"]) == 1
    result = tune(
        recipe, tmp_path / "out", config, data=tiny.digits(), resources=Resources(workers=2)
    )
    assert [row["number"] for row in result["trials"]] == list(range(5))
    assert result["library"] is None
    assert not (tmp_path / "out" / "experts").exists()
    assert sorted(path.name for path in (tmp_path / "out" / "trials").iterdir()) == [
        f"{number:04d}" for number in range(5)
    ]
