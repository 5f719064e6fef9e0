"""The outer loop, run with a method whose gradient is known in closed form."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar

import pytest
import torch

import tiny
from trajmatch.config import Adam, Cosine, DistillConfig
from trajmatch.data.whiten import Normalize
from trajmatch.errors import FileFormatError, MismatchError, SettingError, TrajmatchError
from trajmatch.evaluation import Score
from trajmatch.methods import (
    CAFE,
    DD,
    DM,
    KIP,
    Distillation,
    Estimate,
    Method,
    Outcome,
    Problem,
    SyntheticParameters,
    run_loop,
    to_settings,
)
from trajmatch.methods.checkpoint import (
    CHECKPOINT,
    KIND,
    VERSION,
    Checkpoint,
    checkpoint_iteration,
)
from trajmatch.methods.loop import SKIPS_IN_A_ROW, SNAPSHOTS, StepSizeError
from trajmatch.runtime import interruption
from trajmatch.runtime.progress import Progress, Silent
from trajmatch.storage import read_log
from trajmatch.storage.files import open_tensors, save_tensors
from trajmatch.storage.locks import lock
from trajmatch.synthetic import SyntheticSet

CLASSES = torch.tensor([0, 1])
RARELY = {"eval_every": 99, "checkpoint_every": 99}
WHITENING = Normalize(torch.tensor([0.5]), torch.tensor([0.25]))
CONFIG = DistillConfig(iterations=6, eval_every=2, checkpoint_every=2)
ORIGIN = {"seed": 3, "lr_img": 0.3, "augment": None}
OLD = Path(__file__).with_name("checkpoint-0.1.safetensors")
"""Written by version 0.1 after the fourth iteration of the run in `test_a_checkpoint_of_0_1...`."""

Harm = Callable[[Estimate], Estimate]


def begin(*, soft: bool = False, step_size: float = 0.02) -> SyntheticParameters:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 1, 3, 3, generator=generator, dtype=torch.float64)
    return SyntheticParameters.begin(images, CLASSES, step_size=step_size, soft=2 if soft else None)


GOAL = begin().images.flip(0) + 1.0
TASTE = torch.tensor([[0.3, -0.7], [1.1, 0.4]], dtype=torch.float64)


def plain_loss(images, step_size, labels, alpha):
    """What `Quadratic` gives the gradients of."""
    loss = 0.5 * (images - GOAL).square().sum() + (step_size - alpha).square()
    return loss if labels is None else loss + (labels * TASTE).sum()


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quadratic(Method):
    """Images are drawn to GOAL, the step size to `alpha`, soft labels away from TASTE.

    `losses` replaces the reported loss of an iteration, `harm` changes its whole estimate.
    """

    name: ClassVar[str] = "quadratic"
    title: ClassVar[str] = "quadratic"
    objective: ClassVar[str] = "squared distance"
    normalized: ClassVar[bool] = True
    learns_step_size: ClassVar[bool] = True

    lr_img: float = 0.3
    lr_lr: float = 1e-3
    lr_label: float = 1.0
    step_size: float = 0.02
    skip_loss: float = 1e9
    alpha: float = 0.05
    losses: Mapping[int, float] = dataclasses.field(default_factory=dict)
    harm: Mapping[int, Harm] = dataclasses.field(default_factory=dict)
    visited: dict[int, SyntheticParameters] = dataclasses.field(default_factory=dict)
    """The parameters that each iteration was estimated at."""

    @property
    def rates(self) -> dict[str, float]:
        return {**super().rates, "log_step_size": self.lr_lr / self.step_size**2}

    def estimate(
        self, problem: Problem, parameters: SyntheticParameters, iteration: int
    ) -> Estimate:
        self.visited[iteration] = parameters
        problem.resolved.setdefault("decided at", iteration)
        problem.state["count"] = torch.tensor([iteration + 1.0], dtype=torch.float64)
        soft = parameters.label_logits is not None
        labels = parameters.labels if soft else None
        loss = plain_loss(parameters.images, parameters.step_size, labels, self.alpha)
        estimate = Estimate(
            torch.tensor(self.losses.get(iteration, float(loss)), dtype=torch.float64),
            parameters.images - GOAL,
            TASTE.clone() if soft else None,
            2 * (parameters.step_size - self.alpha),
        )
        return self.harm.get(iteration, lambda estimate: estimate)(estimate)


def package(parameters: SyntheticParameters, iteration: int) -> SyntheticSet:
    return SyntheticSet(
        images=parameters.images,
        labels=parameters.labels,
        classes=("one", "other"),
        whitening=WHITENING,
        step_size=float(parameters.step_size),
        info={"iteration": iteration},
    )


def score(mean: float) -> Score:
    about = {"method": "quadratic", "model": "none", "ipc": 1, "protocol": "none", "split": "val"}
    return Score.of([mean - 1, mean + 1], **about)


def run(
    out: Path,
    method: Quadratic | None = None,
    *,
    initial: SyntheticParameters | None = None,
    problem: Problem | None = None,
    origin: dict[str, object] | None = None,
    scores: dict[int, float] | None = None,
    progress: Progress | None = None,
    stop: int | None = None,
    **settings: object,
) -> Outcome:
    """A loop on validation scores that are the iteration's number, or those given.

    settings: of the outer loop or of the method. stop: interrupt after that iteration, as Ctrl-C
    does.
    """
    method = method or Quadratic()
    own = {name: settings.pop(name) for name in list(settings) if hasattr(method, name)}
    return run_loop(
        Distillation(
            dataclasses.replace(method, **own),
            problem or tiny.bare_problem(),
            initial or begin(),
            dataclasses.replace(CONFIG, **settings),
            package=package,
            validate=lambda _, iteration: score((scores or {}).get(iteration, float(iteration))),
            origin=ORIGIN if origin is None else origin,
        ),
        out,
        progress=progress or tiny.StopAfter(stop),
    )


def interrupted(out: Path, stop: int, *args: object, **kwargs: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(out, *args, stop=stop, **kwargs)


def losses(out: Path) -> list[dict]:
    return [line for line in read_log(out / "log.jsonl") if "loss" in line]


def without_clock(out: Path) -> list[dict]:
    clock = ("time", "seconds")
    return [{k: v for k, v in r.items() if k not in clock} for r in read_log(out / "log.jsonl")]


def checkpoint(out: Path) -> tuple[dict, dict]:
    """Tensors and metadata of the checkpoint, without how long it took."""
    file = open_tensors(out / CHECKPOINT, kind=KIND, version=VERSION)
    return {n: file.read(n) for n in file.names}, {**file.metadata, "seconds": None}


def same_checkpoint(one: Path, other: Path) -> None:
    (tensors, values), (others, expected) = checkpoint(one), checkpoint(other)
    assert values == expected
    assert tensors.keys() == others.keys()
    for name, part in tensors.items():
        assert torch.equal(part, others[name]), name


# -- the optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_it_is_torchs_sgd_with_momentum_one_half(tmp_path: Path, soft: bool) -> None:
    parameters = begin(soft=soft)
    leaves = {name: part.clone().requires_grad_() for name, part in parameters.tensors().items()}
    # The published rate is for alpha itself; on log(alpha) it is divided by alpha_0^2.
    rates = {"images": 0.3, "log_step_size": 1e-3 / 0.02**2, "label_logits": 0.7}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    for _ in range(6):
        optimizer.zero_grad()
        labels = leaves["label_logits"].softmax(1) if soft else None
        plain_loss(leaves["images"], leaves["log_step_size"].exp(), labels, 0.05).backward()
        optimizer.step()

    last = run(tmp_path, initial=parameters, lr_label=0.7).last
    close = {"rtol": 2e-7, "atol": 0.0}  # sets are rounded to float32
    torch.testing.assert_close(last.images, leaves["images"].detach().float(), **close)
    assert last.step_size == pytest.approx(leaves["log_step_size"].exp().item(), rel=1e-12)
    assert abs(last.step_size - 0.02) > 0.0005
    if soft:
        expected = leaves["label_logits"].detach().softmax(1).float()
        torch.testing.assert_close(last.labels, expected, **close)
        assert (last.labels - parameters.labels).abs().max() > 0.05
    else:
        assert torch.equal(last.labels, CLASSES)


def test_the_step_size_never_becomes_negative(tmp_path: Path) -> None:
    method = Quadratic(alpha=-1.0)
    run(tmp_path, method, iterations=40, **RARELY)
    steps = [line["step_size"] for line in losses(tmp_path)]
    assert all(step > 0 for step in steps)
    assert steps == sorted(steps, reverse=True)
    plain, momentum = 0.02, 0.0
    for _ in range(40):  # the published update, on the step size itself
        momentum = 0.5 * momentum + 2 * (plain + 1.0)
        plain -= 1e-3 * momentum
    assert plain < 0


def test_no_rate_keeps_the_step_size(tmp_path: Path) -> None:
    assert run(tmp_path, lr_lr=0.0).last.step_size == pytest.approx(0.02, rel=1e-15)


# -- the guard -----------------------------------------------------------------------------------


def skipped(out: Path) -> list[float]:
    return [line["skipped"] for line in losses(out)]


def test_the_guard_arms_itself_and_a_skipped_update_moves_nothing(tmp_path: Path) -> None:
    method = Quadratic(losses=dict(enumerate([3.0, 1.01, 1.0, 1.01, 50.0, 1.0])))
    outcome = run(tmp_path / "guarded", method, skip_loss=1.0)
    assert skipped(tmp_path / "guarded") == [0, 0, 0, 1, 1, 0]
    moved = [
        not torch.equal(method.visited[i].images, method.visited[i + 1].images) for i in range(5)
    ]
    assert moved == [True, True, True, False, False]
    assert method.visited[3] is method.visited[4] is method.visited[5]
    # Momentum stood still too: what follows is as if those two had not been.
    never = run(tmp_path / "never", iterations=4)
    assert torch.equal(outcome.last.images, never.last.images)
    assert outcome.last.step_size == never.last.step_size


def test_an_outcome_is_short_in_words_and_shows_its_best_set(tmp_path: Path) -> None:
    outcome = run(tmp_path)
    best = outcome.best_iteration
    words = f"best at iteration {best} of 6, {best:.1f} +- 1.4 % on validation images (n=2)"
    assert repr(outcome) == f"Outcome({words}: {outcome.best!r})"
    assert outcome._repr_html_() == f"<div>{words}</div>{outcome.best._repr_html_()}"
    assert outcome._repr_html_().count("<img") == len(outcome.best)


def test_a_guard_that_no_loss_has_armed_skips_nothing(tmp_path: Path) -> None:
    run(tmp_path, Quadratic(losses=dict.fromkeys(range(6), 7.0)), skip_loss=1.0)
    assert skipped(tmp_path) == [0] * 6


def test_being_armed_survives_a_resumption(tmp_path: Path) -> None:
    reported = dict(enumerate([0.5, 0.5, 7.0, 7.0, 0.5, 7.0]))
    interrupted(tmp_path, 2, Quadratic(losses=reported), skip_loss=1.0)
    run(tmp_path, Quadratic(losses=reported), skip_loss=1.0)
    assert skipped(tmp_path) == [0, 0, 1, 1, 0, 1]


def test_fifty_skips_in_a_row_end_the_run(tmp_path: Path) -> None:
    assert SKIPS_IN_A_ROW == 50
    reported = {0: 0.5, **dict.fromkeys(range(1, 99), 7.25)}
    with pytest.raises(SettingError) as error:
        run(tmp_path, Quadratic(losses=reported), iterations=99, skip_loss=1.5, **RARELY)
    message = str(error.value)
    for part in ("50 updates in a row", "iteration 51", "loss 7.25", "skip_loss 1.5"):
        assert part in message
    for mend in ("lr_img= (now 0.3)", "step_size=", "skip_loss="):
        assert mend in message
    assert "\n" not in message


def test_forty_nine_skips_do_not_and_a_good_one_starts_the_count_again(tmp_path: Path) -> None:
    bad = [i for i in range(100) if i not in (0, 50)]
    method = Quadratic(losses={0: 0.5, 50: 0.5, **dict.fromkeys(bad, 7.0)})
    run(tmp_path, method, iterations=100, skip_loss=1.0, **RARELY)
    assert sum(skipped(tmp_path)) == 98


def test_the_count_of_skips_survives_a_resumption(tmp_path: Path) -> None:
    reported = {0: 0.5, **dict.fromkeys(range(1, 99), 7.0)}
    settings = {"iterations": 99, "skip_loss": 1.0, "eval_every": 99, "checkpoint_every": 30}
    interrupted(tmp_path, 30, Quadratic(losses=reported), **settings)
    with pytest.raises(SettingError, match="iteration 51 "):
        run(tmp_path, Quadratic(losses=reported), **settings)


# -- numbers that are not finite -----------------------------------------------------------------


def worse(part: str, value: float) -> Harm:
    """The estimate with a single number of one part replaced."""

    def harm(estimate: Estimate) -> Estimate:
        tensor = getattr(estimate, part).clone()
        tensor.view(-1)[-1] = value
        return dataclasses.replace(estimate, **{part: tensor})

    return harm


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("part", ["loss", "images", "step_size", "labels"])
def test_what_is_not_finite_is_taken_back(tmp_path: Path, part: str, value: float) -> None:
    method = Quadratic(harm={2: worse(part, value)})
    outcome = run(tmp_path, method, initial=begin(soft=True))
    assert skipped(tmp_path) == [0, 0, 1, 0, 0, 0]
    assert method.visited[3] is method.visited[2]
    # The momentum that may have led there is gone: the next update is the gradient alone.
    before, after = method.visited[3], method.visited[4]
    torch.testing.assert_close(after.images, before.images - 0.3 * (before.images - GOAL))
    slope = 2 * (before.step_size - 0.05) * before.step_size
    torch.testing.assert_close(after.log_step_size, before.log_step_size - 1e-3 / 0.02**2 * slope)
    assert outcome.last.images.isfinite().all()
    line = losses(tmp_path)[2]
    assert (line["loss"] is None) == (part == "loss")


def test_fifty_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    harm = dict.fromkeys(range(1, 99), worse("images", math.nan))
    with pytest.raises(SettingError, match="50 updates in a row"):
        run(tmp_path, Quadratic(harm=harm), iterations=99, **RARELY)


# -- the sets that are saved --------------------------------------------------------------------


def test_the_average_of_the_images_is_what_is_kept(tmp_path: Path) -> None:
    method, plain = Quadratic(), Quadratic()
    outcome = run(tmp_path / "averaged", method, ema=0.75)
    alone = run(tmp_path / "plain", plain)
    average = begin().images
    for iteration in range(1, 6):
        average = 0.75 * average + 0.25 * method.visited[iteration].images
        assert torch.equal(method.visited[iteration].images, plain.visited[iteration].images)
    average = 0.75 * average + 0.25 * alone.last.images
    torch.testing.assert_close(outcome.last.images, average.float(), rtol=2e-7, atol=2e-7)
    assert (outcome.last.images - alone.last.images).abs().max() > 0.1
    assert outcome.last.step_size == alone.last.step_size


def test_best_is_chosen_by_validation_and_the_last_is_kept_too(tmp_path: Path) -> None:
    scores = {2: 50.0, 4: 70.0, 6: 60.0}
    outcome = run(tmp_path / "run", scores=scores)
    assert outcome.best_iteration == outcome.best.info["iteration"] == 4
    assert outcome.best_validation == {
        "iteration": 4, "mean": 70.0, "sd": pytest.approx(2**0.5), "n": 2,
    }  # fmt: skip
    assert outcome.last.info["iteration"] == outcome.iterations == 6
    assert torch.equal(outcome.best.images, run(tmp_path / "four", iterations=4).last.images)
    assert not torch.equal(outcome.best.images, outcome.last.images)
    for name, distilled in (("best", outcome.best), ("last", outcome.last)):
        assert torch.equal(SyntheticSet.load(tmp_path / "run" / name).images, distilled.images)


def test_of_equal_scores_the_first_is_best(tmp_path: Path) -> None:
    assert run(tmp_path, scores={2: 10.0, 4: 10.0, 6: 10.0}).best_iteration == 2


def validated(out: Path) -> list[int]:
    return [line["step"] for line in read_log(out / "log.jsonl") if "val_mean" in line]


@pytest.mark.parametrize(("start", "best"), [(65.0, 4), (70.0, 0), (75.0, 0)])
def test_the_set_that_a_run_begins_with_is_a_candidate(
    tmp_path: Path, start: float, best: int
) -> None:
    outcome = run(tmp_path / "run", scores={0: start, 2: 50.0, 4: 70.0, 6: 60.0})
    assert (outcome.best_iteration, outcome.best_validation["mean"]) == (best, max(start, 70.0))
    assert ("never better than where it began" in outcome.best_words) == (best == 0)
    if best == 0:
        assert torch.equal(outcome.best.images, begin().images.float())
    # Nothing that follows depends on it.
    assert torch.equal(outcome.last.images, run(tmp_path / "other").last.images)


def test_skipped_updates_are_counted_over_all_calls(tmp_path: Path) -> None:
    class Messages(tiny.StopAfter):
        def message(self, text: str) -> None:
            said.append(text)

    said: list[str] = []
    losses = dict(enumerate([0.5, 7.0, 1.0, 7.0, 7.0, 1.0]))
    settings = {"skip_loss": 1.5, "checkpoint_every": 1}
    interrupted(tmp_path, 3, Quadratic(losses=losses), **settings)
    run(tmp_path, Quadratic(losses=losses), progress=Messages(None), **settings)
    assert said == ["3 of 6 updates were skipped (loss above 1.5, or not finite)"]
    said.clear()
    run(tmp_path / "none", progress=Messages(None))
    assert said == []


def test_the_last_iteration_is_validated_wherever_it_falls(tmp_path: Path) -> None:
    outcome = run(tmp_path, iterations=5, eval_every=2)
    assert validated(tmp_path) == [0, 2, 4, 5]
    assert (outcome.best_iteration, outcome.last.info["iteration"]) == (5, 5)


# -- the log and the snapshots -------------------------------------------------------------------


def test_a_longer_run_that_is_cut_short_is_as_one_that_was_as_short(tmp_path: Path) -> None:
    """Its newest set is validated, and may be the best."""
    settings = {"iterations": 9, "eval_every": 4, "checkpoint_every": 1, "scores": {6: 50.0}}
    interrupted(tmp_path / "cut", 6, **settings)
    outcome = run(tmp_path / "cut", **{**settings, "iterations": 6})
    assert (outcome.best_iteration, outcome.best_validation["mean"]) == (6, 50.0)
    run(tmp_path / "short", **{**settings, "iterations": 6})
    same_checkpoint(tmp_path / "cut", tmp_path / "short")


def test_a_step_size_that_collapses_ends_the_run(tmp_path: Path) -> None:
    """At a fifth of where it began; a run that is below that already is not stopped."""

    class Falling(Quadratic):
        first_step_size = 0.02

    falling = Falling(alpha=1e-4, lr_lr=0.1, step_size=0.02)
    settings = {"iterations": 60, "eval_every": 100, "checkpoint_every": 1}
    with pytest.raises(StepSizeError, match=r"fell from 0.02 to 0.00\d+, .* step_size=0.01") as e:
        run(tmp_path / "a", falling, **settings)
    assert e.value.first == 0.02
    low = begin(step_size=0.003)
    run(tmp_path / "b", falling, initial=low, **{**settings, "iterations": 3})


def test_the_log_has_a_line_an_iteration(tmp_path: Path) -> None:
    method = Quadratic()
    run(tmp_path, method)
    lines = losses(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line.keys() == {
            "time", "step", "loss", "step_size", "grad_norm", "skipped", "seconds",
        }  # fmt: skip
        at = method.visited[line["step"] - 1]
        assert line["step_size"] == pytest.approx(at.step_size.item(), rel=1e-12)
        assert line["grad_norm"] == pytest.approx((at.images - GOAL).norm().item(), rel=1e-12)
        assert line["loss"] == pytest.approx(
            float(plain_loss(at.images, at.step_size, None, 0.05)), rel=1e-12
        )
        assert line["seconds"] > 0
    lines = [line for line in read_log(tmp_path / "log.jsonl") if "val_mean" in line]
    assert [(r["step"], r["val_mean"], r["val_n"]) for r in lines] == [
        (0, 0.0, 2), (2, 2.0, 2), (4, 4.0, 2), (6, 6.0, 2),
    ]  # fmt: skip


def test_snapshots_are_the_pictures_of_their_iterations(tmp_path: Path) -> None:
    method = Quadratic()
    run(tmp_path, method, iterations=100, eval_every=50, checkpoint_every=99)
    stride = 3  # 34 pictures on the way, of at most SNAPSHOTS
    assert 100 // stride <= SNAPSHOTS < 100 // (stride - 1)
    expected = sorted({*range(0, 101, stride), 50, 100})
    paths = sorted((tmp_path / "snapshots").iterdir())
    assert [path.name for path in paths] == [f"{i:06d}.safetensors" for i in expected]
    for iteration in (0, 3, 50):
        path = tmp_path / "snapshots" / f"{iteration:06d}.safetensors"
        file = open_tensors(path, kind="snapshot", version=1)
        assert file.metadata == {"iteration": iteration}
        pictures = package(method.visited[iteration], iteration).pixels()
        assert torch.equal(file.read("images"), pictures)
        assert file.read("images").dtype == torch.uint8
        assert torch.equal(file.read("labels"), CLASSES)


def test_iterations_and_validations_are_reported(tmp_path: Path) -> None:
    reported: list[tuple] = []

    class Recorded(Silent):
        def update(self, task: str, done: int, total: int, **values: object) -> None:
            reported.append((task, done, total, values.get("loss")))

        def event(self, name: str, **values: object) -> None:
            reported.append((name, values["iteration"], values["val_mean"]))

    run(tmp_path, progress=Recorded(), iterations=4)
    lines = [("distill", line["step"], 4, line["loss"]) for line in losses(tmp_path)]
    events = [("validation", i, float(i)) for i in (0, 2, 4)]
    assert reported == [events[0], lines[0], events[1], *lines[1:3], events[2], lines[3]]
    reported.clear()
    run(tmp_path, progress=Recorded(), iterations=5)  # a resumed run reports where it begins
    assert reported[0] == ("distill", 4, 5, None)


# -- resuming ------------------------------------------------------------------------------------

SETTINGS = {"iterations": 12, "eval_every": 4, "checkpoint_every": 3, "ema": 0.5, "skip_loss": 1e3}
REPORTED = {3: 2e3, 4: 2e3, 8: 2e3}
SCORES = {4: 30.0, 8: 20.0, 12: 10.0}


def eventful() -> Quadratic:
    """Skips and a number that is not finite on the way."""
    return Quadratic(losses={0: 1.0, **REPORTED}, harm={6: worse("images", math.nan)})


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "undisturbed"
    run(out, eventful(), initial=begin(soft=True), scores=SCORES, **SETTINGS)
    assert skipped(out) == [0, 0, 0, 1, 1, 0, 1, 0, 1, 0, 0, 0]
    return out


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 7, 8, 11, 12])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, undisturbed: Path, stop: int
) -> None:
    interrupted(tmp_path, stop, eventful(), initial=begin(soft=True), scores=SCORES, **SETTINGS)
    method = eventful()
    outcome = run(tmp_path, method, initial=begin(soft=True), scores=SCORES, **SETTINGS)
    same_checkpoint(tmp_path, undisturbed)
    assert without_clock(tmp_path) == without_clock(undisturbed)
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == sorted(
        p.name for p in (undisturbed / "snapshots").iterdir()
    )
    for name, distilled in (("best", outcome.best), ("last", outcome.last)):
        other = SyntheticSet.load(undisturbed / name)
        assert torch.equal(distilled.images, other.images)
        assert torch.equal(distilled.labels, other.labels)
        assert (distilled.step_size, distilled.info) == (other.step_size, other.info)
    assert outcome.best_iteration == 4
    # No more is done again than what followed the last checkpoint or evaluation.
    saved = [i for i in (0, 3, 4, 6, 8, 9, 12) if i <= stop]
    assert sorted(method.visited) == list(range(saved[-1], 12))


def test_interrupted_at_every_iteration(tmp_path: Path, undisturbed: Path) -> None:
    often = {**SETTINGS, "checkpoint_every": 1}
    for stop in range(1, 12):
        interrupted(tmp_path, stop, eventful(), initial=begin(soft=True), scores=SCORES, **often)
    run(tmp_path, eventful(), initial=begin(soft=True), scores=SCORES, **often)
    same_checkpoint(tmp_path, undisturbed)
    assert without_clock(tmp_path) == without_clock(undisturbed)


def test_state_and_resolved_settings_are_resumed(tmp_path: Path) -> None:
    interrupted(tmp_path, 4)
    method, problem = Quadratic(), tiny.bare_problem()
    outcome = run(tmp_path, method, problem=problem, iterations=5)
    assert min(method.visited) == 4
    assert problem.resolved == outcome.resolved == {"decided at": 0}
    tensors, _ = checkpoint(tmp_path)
    assert tensors["carried.count"].tolist() == problem.state["count"].tolist() == [5.0]


def test_more_iterations_extend_a_finished_run(tmp_path: Path) -> None:
    short = run(tmp_path / "run")
    assert short.iterations == 6
    method = Quadratic()
    long = run(tmp_path / "run", method, iterations=10)
    assert sorted(method.visited) == [6, 7, 8, 9]
    straight = run(tmp_path / "straight", iterations=10)
    assert long.iterations == long.best_iteration == straight.best_iteration == 10
    assert torch.equal(long.last.images, straight.last.images)
    assert without_clock(tmp_path / "run") == without_clock(tmp_path / "straight")
    assert long.seconds > short.seconds > 0


OUTER = {"optimizer": Adam(betas=(0.8, 0.95)), "schedule": Cosine(end=0.1)}


@pytest.mark.parametrize("stop", [3, 7])
def test_another_optimizer_and_schedule_resume_to_the_same_bits(tmp_path: Path, stop: int) -> None:
    """With skipped and non-finite updates on the way, which its state goes through as well."""
    settings = {**SETTINGS, **OUTER, "initial": begin(soft=True), "scores": SCORES}
    run(tmp_path / "whole", eventful(), **settings)
    interrupted(tmp_path / "parts", stop, eventful(), **settings)
    run(tmp_path / "parts", eventful(), **settings)
    same_checkpoint(tmp_path / "parts", tmp_path / "whole")
    tensors, _ = checkpoint(tmp_path / "whole")
    assert tensors["exp_avg.images"].shape == (18,)
    assert tensors["step.images"].item() == 4  # since the update that was not finite
    assert not any(name.startswith("momentum.") for name in tensors)


def test_the_schedule_is_a_factor_on_every_rate(tmp_path: Path) -> None:
    method = Quadratic()
    run(tmp_path, method, initial=begin(soft=True), schedule=Cosine(end=0.5), **RARELY)
    first, second = method.visited[0], method.visited[1]
    third = method.visited[2]
    gradients = [parameters.images - GOAL for parameters in (first, second)]
    torch.testing.assert_close(second.images, first.images - 0.3 * gradients[0])
    factor = 0.5 + 0.5 * (1 + math.cos(math.pi / 6)) / 2
    momentum = 0.5 * gradients[0] + gradients[1]
    torch.testing.assert_close(third.images, second.images - factor * 0.3 * momentum)
    slopes = [
        2 * (parameters.step_size - 0.05) * parameters.step_size for parameters in (first, second)
    ]
    moved = factor * 1e-3 / 0.02**2 * (0.5 * slopes[0] + slopes[1])
    torch.testing.assert_close(third.log_step_size, second.log_step_size - moved)


def test_a_checkpoint_of_version_0_1_resumes_to_the_same_bits(tmp_path: Path) -> None:
    settings = {"ema": 0.5, "lr_label": 0.7, "initial": begin(soft=True)}
    reported = {0: 1.0, 1: 1.0, 3: 2e9}
    run(tmp_path / "whole", Quadratic(losses=reported), **settings)
    resumed = tmp_path / "resumed"
    resumed.mkdir()
    shutil.copy(OLD, resumed / CHECKPOINT)
    old = open_tensors(OLD, kind=KIND, version=VERSION)
    assert "decisions" in old.metadata
    assert "momentum.label_logits" in old.names
    assert checkpoint_iteration(resumed) == 4
    method, problem = Quadratic(losses=reported), tiny.bare_problem()
    outcome = run(resumed, method, problem=problem, **settings)
    assert sorted(method.visited) == [4, 5]
    assert outcome.resolved == {"decided at": 0}
    (tensors, values), (others, expected) = checkpoint(resumed), checkpoint(tmp_path / "whole")
    assert values.pop("written") == expected.pop("written")[-1:]  # of earlier ones it knows nothing
    assert values == expected
    assert all(torch.equal(tensors[name], others[name]) for name in others)


@pytest.mark.parametrize("iterations", [6, 3])
def test_a_finished_run_is_not_run_again(tmp_path: Path, iterations: int) -> None:
    first = run(tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    method = Quadratic()
    again = run(tmp_path, method, iterations=iterations)
    assert method.visited == {}
    assert (again.iterations, again.best_iteration) == (6, 6)
    assert torch.equal(again.best.images, first.best.images)
    assert again.seconds == first.seconds
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(
    ("scores", "short", "long"),
    [
        ({6: 90.0, 12: 80.0}, 6, 12),  # the newest set of six is the best, and dropped again
        ({0: 50.0, 4: 70.0, 6: 90.0, 8: 75.0}, 6, 8),
        ({0: 95.0, 6: 90.0}, 0, 0),
        ({4: 95.0, 6: 90.0}, 4, 4),
    ],
)
@pytest.mark.parametrize("twice", [False, True])
def test_a_run_that_is_extended_is_the_one_that_was_as_long_from_the_start(
    tmp_path: Path, scores: dict[int, float], short: int, long: int, twice: bool
) -> None:
    """Six iterations end where no validation is due; so does a run of ten, extended once more."""
    settings = {"scores": scores, "eval_every": 4, "checkpoint_every": 5}
    for _ in range(2):  # again: it is done
        outcome = run(tmp_path / "run", iterations=6, **settings)
        assert (outcome.best_iteration, outcome.best.info["iteration"]) == (short, short)
        assert outcome.best_validation["mean"] == scores.get(short, float(short))
    if twice:
        run(tmp_path / "run", iterations=10, **settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", iterations=12, stop=11, **settings)
    extended = run(tmp_path / "run", iterations=12, **settings)
    straight = run(tmp_path / "straight", iterations=12, **settings)
    assert extended.best_iteration == straight.best_iteration == long
    assert extended.best_validation == straight.best_validation
    for name in ("best", "last"):
        one, other = (SyntheticSet.load(tmp_path / of / name) for of in ("run", "straight"))
        assert torch.equal(one.images, other.images)
        assert one.info == other.info
    assert without_clock(tmp_path / "run") == without_clock(tmp_path / "straight")
    assert validated(tmp_path / "run") == [0, 4, 8, 12]


# -- the best set is the run's own ---------------------------------------------------------------


@pytest.mark.parametrize("done", [False, True])
def test_another_set_in_best_is_refused(tmp_path: Path, done: bool) -> None:
    scores = {0: 1.0, 2: 50.0, 4: 40.0, 6: 30.0}
    (run if done else interrupted)(tmp_path / "run", *(() if done else (4,)), scores=scores)
    best = tmp_path / "run" / "best"
    own = SyntheticSet.load(best)
    dataclasses.replace(own, images=own.images + 1).save(best)
    before = contents(tmp_path)
    with pytest.raises(MismatchError, match=r"best holds a set .*did not write there; move it"):
        run(tmp_path / "run", scores=scores)
    assert contents(tmp_path) == before
    # As the message says, and after damage: the set is written again from the checkpoint.
    for harm in (shutil.rmtree, lambda folder: (folder / "distilled.safetensors").write_bytes(b"")):
        harm(best)
        outcome = run(tmp_path / "run", scores=scores)
        assert outcome.best_iteration == 2
        assert torch.equal(SyntheticSet.load(best).images, own.images)
        assert outcome.best.step_size == own.step_size


def test_killed_between_the_checkpoint_and_the_best_set(tmp_path: Path) -> None:
    run(tmp_path / "two", iterations=2)
    run(tmp_path / "run", iterations=4)
    shutil.rmtree(tmp_path / "run" / "best")
    shutil.copytree(tmp_path / "two" / "best", tmp_path / "run" / "best")
    outcome = run(tmp_path / "run", iterations=4)
    assert outcome.best_iteration == outcome.best.info["iteration"] == 4
    assert torch.equal(outcome.best.images, outcome.last.images)


def test_another_set_in_last_does_not_become_the_outcome(tmp_path: Path) -> None:
    first = run(tmp_path)
    dataclasses.replace(first.last, images=first.last.images + 1).save(tmp_path / "last")
    again = run(tmp_path)
    assert torch.equal(again.last.images, first.last.images)
    assert torch.equal(SyntheticSet.load(tmp_path / "last").images, first.last.images)


def test_notes_of_the_moment_are_logged_and_not_resolved(tmp_path: Path) -> None:
    """Killed before its first checkpoint or after it, the log has them once."""

    class Noted(Quadratic):
        def estimate(self, problem, parameters, iteration):
            if "keep" not in problem.resolved:
                problem.resolved["keep"] = 3
                problem.notes["keep_reason"] = "half of 4.2 GB free"
            return super().estimate(problem, parameters, iteration)

    (tmp_path / "log.jsonl").write_text('{"time": 1.5, "step": 0, "val_mean": 1.0}\n')
    interrupted(tmp_path, 1, Noted(), checkpoint_every=1)
    outcome = run(tmp_path, Noted(), checkpoint_every=1)
    assert outcome.resolved == {"keep": 3, "decided at": 0}
    events = [line for line in without_clock(tmp_path) if "event" in line]
    noted = {"keep": 3, "decided at": 0, "keep_reason": "half of 4.2 GB free"}
    assert events == [{"event": "resolved", **noted}]
    assert validated(tmp_path) == [0, 2, 4, 6]
    (tmp_path / CHECKPOINT).unlink()
    run(tmp_path, Noted())
    assert [line for line in without_clock(tmp_path) if "event" in line] == events
    assert validated(tmp_path) == [0, 2, 4, 6]


# -- checkpoints that are refused ----------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(
    ("name", "value"), [("seed", 4), ("lr_img", 0.25), ("augment", "flip"), ("segments", 2)]
)
def test_a_checkpoint_of_other_settings_is_refused(
    tmp_path: Path, name: str, value: object
) -> None:
    interrupted(tmp_path, 4)
    before = contents(tmp_path)
    method = Quadratic()
    with pytest.raises(MismatchError) as error:
        run(tmp_path, method, origin={**ORIGIN, name: value})
    message = str(error.value)
    assert f"{name}={ORIGIN.get(name)}" in message
    assert f"{name}={value}" in message
    assert "another out=" in message
    assert "\n" not in message
    assert method.visited == {}
    assert contents(tmp_path) == before


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with (
        lock(tmp_path / ".lock"),
        pytest.raises(SettingError, match=r"another process is writing to .*another out="),
    ):
        run(tmp_path)
    run(tmp_path)  # free again


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("loop") / "stopped"
    interrupted(out, 4, initial=begin(soft=True))
    return out


def refused_for_its_checkpoint(out: Path, kind: type[TrajmatchError] = FileFormatError) -> str:
    before = contents(out)
    method = Quadratic()
    with pytest.raises(kind) as error:
        run(out, method, initial=begin(soft=True))
    assert method.visited == {}
    assert contents(out) == before
    assert CHECKPOINT in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, stopped: Path, share: float) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "copy"))
    whole = (out / CHECKPOINT).read_bytes()
    (out / CHECKPOINT).write_bytes(whole[: int(len(whole) * share)])
    message = refused_for_its_checkpoint(out)
    assert "delete it" in message


def test_a_checkpoint_with_any_flipped_bit_is_refused(tmp_path: Path, stopped: Path) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "copy"))
    whole = (out / CHECKPOINT).read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = torch.randint(len(whole), (40,), generator=generator).tolist()
    for place in [0, 9, len(whole) - 1, *places]:
        harmed = bytearray(whole)
        harmed[place] ^= 1 << place % 8
        (out / CHECKPOINT).write_bytes(harmed)
        refused_for_its_checkpoint(out)


def test_a_foreign_or_newer_checkpoint_is_refused(tmp_path: Path, stopped: Path) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "copy"))
    file = open_tensors(out / CHECKPOINT, kind=KIND, version=VERSION)
    tensors = {name: file.read(name) for name in file.names}
    save_tensors(out / CHECKPOINT, tensors, kind=KIND, version=VERSION + 1, metadata=file.metadata)
    assert "newer trajmatch" in refused_for_its_checkpoint(out)
    shutil.copy(out / "best" / "distilled.safetensors", out / CHECKPOINT)
    assert "distilled" in refused_for_its_checkpoint(out)
    (out / CHECKPOINT).write_text("not a checkpoint at all, but long enough to be one")
    refused_for_its_checkpoint(out)


# -- checkpoints of version 0.1 ------------------------------------------------------------------


def old_checkpoint(out: Path, origin: dict[str, object]) -> None:
    """Write a checkpoint as version 0.1 wrote it for a run of `origin`."""
    old = open_tensors(OLD, kind=KIND, version=VERSION)
    tensors = {name: old.read(name) for name in old.names}
    metadata = {**old.metadata, "origin": origin}
    save_tensors(out / CHECKPOINT, tensors, kind=KIND, version=VERSION, metadata=metadata)


def origin_of(method: Method) -> dict[str, object]:
    method, config = method.completed(DistillConfig())
    settings = to_settings(config, method)
    return {name: settings[name] for name in ("method", "optimizer", "schedule")} | {
        field.name: settings[field.name] for field in dataclasses.fields(method)
    }


@pytest.mark.parametrize(
    ("method", "older"),
    [
        (DD(bptt_steps=2), {"window": 2}),
        (CAFE(), {}),
        (KIP(), {"window": None}),
    ],
    ids=["dd", "cafe", "kip"],
)
def test_an_origin_of_version_0_1_is_that_of_todays_defaults(
    tmp_path: Path, method: Method, older: dict[str, object]
) -> None:
    """It has settings of all methods, and none of those that came later."""
    later = (
        "bptt_steps", "optimizer", "schedule", "discrimination_weight", "accuracies", "settled",
        "moved", "max_epochs", "batch_query", "numbers_at_a_time",
        "lr_log_step_size",
    )  # fmt: skip
    today = origin_of(method)
    written = {name: value for name, value in today.items() if name not in later} | older
    old_checkpoint(tmp_path, {**written, "syn_steps": 50, "of_another_method": 1})
    like = begin(soft=True).tensors()
    assert Checkpoint.load(tmp_path, like, {**today, "syn_steps": 50}) is not None
    for name in later:
        if name in today:
            with pytest.raises(MismatchError, match=f"{name}="):
                Checkpoint.load(tmp_path, like, {**today, name: 7})


@pytest.mark.parametrize(
    ("first", "then", "name"),
    [
        ({"optimizer": Adam()}, {}, "optimizer=adam, this one has optimizer=sgd"),
        ({}, {"optimizer": Adam()}, "optimizer=sgd, this one has optimizer=adam"),
        ({"schedule": Cosine()}, {}, "schedule=cosine, this one has schedule=constant"),
        ({}, {"schedule": Cosine()}, "schedule=constant, this one has schedule=cosine"),
        ({"schedule": Cosine()}, {"schedule": Cosine(), "iterations": 5}, "iterations=4"),
    ],
)
def test_another_outer_optimizer_does_not_continue_a_run(
    tmp_path: Path, first: dict[str, object], then: dict[str, object], name: str
) -> None:
    method = DM(batch_real=8)
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(tmp_path, method, stop=1, **first)
    with pytest.raises(MismatchError, match=name):
        tiny.distill(tmp_path, method, **then)


# -- signals -------------------------------------------------------------------------------------


@pytest.fixture
def _signals() -> Iterator[None]:
    """As in the program."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM)]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a shell's background
    interruption.catch_signals()
    yield
    for number, handler in before:
        signal.signal(number, handler)
    next_process()


def next_process() -> None:
    """The state of a program that begins."""
    interruption._State.number, interruption._State.postponed = None, False
    interruption._State.exiting = False


@pytest.mark.usefixtures("_signals")
@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
@pytest.mark.parametrize("at", [2, 3])  # the fourth iteration is validated
def test_a_signal_saves_at_the_end_of_the_iteration(
    tmp_path: Path, name: str, code: int, at: int
) -> None:
    run(tmp_path / "undisturbed", eval_every=4, checkpoint_every=99)

    def signaled(estimate: Estimate) -> Estimate:
        signal.raise_signal(getattr(signal, name))
        return estimate

    with pytest.raises(interruption.Interruption, match="run the same command again") as stop:
        run(tmp_path / "run", harm={at: signaled}, eval_every=4, checkpoint_every=99)
    assert stop.value.code == code
    assert checkpoint_iteration(tmp_path / "run") == at + 1
    assert validated(tmp_path / "run") == [0]
    next_process()
    run(tmp_path / "run", eval_every=4, checkpoint_every=99)
    same_checkpoint(tmp_path / "run", tmp_path / "undisturbed")
    assert without_clock(tmp_path / "run") == without_clock(tmp_path / "undisturbed")


@pytest.mark.usefixtures("_signals")
def test_a_signal_ends_a_validation_at_once_and_it_is_made_up_for(tmp_path: Path) -> None:
    class Scores(dict[int, float]):
        def get(self, iteration: int, default: float = 0.0) -> float:
            if iteration == 4:
                signal.raise_signal(signal.SIGTERM)
            return default

    run(tmp_path / "undisturbed")
    with pytest.raises(interruption.Interruption):
        run(tmp_path / "run", scores=Scores({99: 0.0}), checkpoint_every=99)
    assert checkpoint_iteration(tmp_path / "run") == 4
    next_process()
    assert run(tmp_path / "run").best_iteration == 6
    same_checkpoint(tmp_path / "run", tmp_path / "undisturbed")
    assert without_clock(tmp_path / "run") == without_clock(tmp_path / "undisturbed")
    assert sorted(p.name for p in (tmp_path / "run" / "snapshots").iterdir()) == sorted(
        p.name for p in (tmp_path / "undisturbed" / "snapshots").iterdir()
    )


@pytest.mark.usefixtures("_signals")
def test_a_signal_whose_exception_is_caught_elsewhere_is_not_lost(tmp_path: Path) -> None:
    with contextlib.suppress(KeyboardInterrupt):  # as Python does in a destructor
        signal.raise_signal(signal.SIGTERM)
    with pytest.raises(interruption.Interruption) as stop:
        run(tmp_path / "run")
    assert stop.value.code == 143
    assert not (tmp_path / "run").exists()
