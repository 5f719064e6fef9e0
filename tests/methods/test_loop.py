"""The outer loop, run with a method whose gradient is known in closed form."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trajmatch.config import DistillConfig
from trajmatch.data.whiten import Normalize
from trajmatch.errors import FileFormatError, MismatchError, SettingError, TrajmatchError
from trajmatch.evaluation import Score
from trajmatch.methods import Estimate, Outcome, SyntheticParameters, run_loop
from trajmatch.methods.loop import CHECKPOINT, KIND, SKIPS_IN_A_ROW, SNAPSHOTS, VERSION
from trajmatch.storage import read_log
from trajmatch.storage.files import open_tensors, save_tensors
from trajmatch.synthetic import SyntheticSet

CLASSES = torch.tensor([0, 1])
RARELY = {"eval_every": 99, "checkpoint_every": 99}
WHITENING = Normalize(torch.tensor([0.5]), torch.tensor([0.25]))
CONFIG = DistillConfig(
    iterations=6, lr_img=0.3, lr_lr=1e-3, step_size=0.02, eval_every=2, checkpoint_every=2,
    skip_loss=1e9,
)  # fmt: skip
ORIGIN = {"seed": 3, "lr_img": 0.3, "augment": None}

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


class Quadratic:
    """Images are drawn to GOAL, the step size to `alpha`, soft labels away from TASTE.

    `losses` replaces the reported loss of an iteration, `harm` changes its whole estimate.
    """

    name = "quadratic"
    normalized = True

    def __init__(
        self,
        *,
        alpha: float = 0.05,
        losses: dict[int, float] | None = None,
        harm: dict[int, Harm] | None = None,
    ) -> None:
        self.decisions: dict[str, object] = {}
        self.carried: dict[str, torch.Tensor] = {}
        self.alpha, self.losses, self.harm = alpha, losses or {}, harm or {}
        self.seen: dict[int, SyntheticParameters] = {}
        """What each iteration was asked about."""

    def estimate(self, learned: SyntheticParameters, iteration: int) -> Estimate:
        self.seen[iteration] = learned
        self.decisions.setdefault("decided at", iteration)
        soft = learned.label_logits is not None
        labels = learned.labels if soft else None
        loss = plain_loss(learned.images, learned.step_size, labels, self.alpha)
        made = Estimate(
            torch.tensor(self.losses.get(iteration, float(loss)), dtype=torch.float64),
            learned.images - GOAL,
            TASTE.clone() if soft else None,
            2 * (learned.step_size - self.alpha),
        )
        return self.harm.get(iteration, lambda estimate: estimate)(made)


def package(learned: SyntheticParameters, iteration: int) -> SyntheticSet:
    return SyntheticSet(
        images=learned.images,
        labels=learned.labels,
        classes=("one", "other"),
        whitening=WHITENING,
        step_size=float(learned.step_size),
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
    origin: dict[str, object] | None = None,
    scores: dict[int, float] | None = None,
    stop_at: int | None = None,
    **settings: object,
) -> Outcome:
    """A loop on validation scores that are the iteration's number, or those given.

    `stop_at`: interrupt after that iteration, as Ctrl-C would.
    """

    def on_iteration(iteration: int, values: object) -> None:
        if iteration == stop_at:
            raise KeyboardInterrupt

    return run_loop(
        method or Quadratic(),
        initial or begin(),
        dataclasses.replace(CONFIG, **settings),
        out,
        package=package,
        validate=lambda made, iteration: score((scores or {}).get(iteration, float(iteration))),
        origin=ORIGIN if origin is None else origin,
        on_iteration=on_iteration,
    )


def interrupted(out: Path, stop_at: int, *args: object, **kwargs: object) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(out, *args, stop_at=stop_at, **kwargs)


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
    (mine, said), (theirs, told) = checkpoint(one), checkpoint(other)
    assert said == told
    assert mine.keys() == theirs.keys()
    for name, part in mine.items():
        assert torch.equal(part, theirs[name]), name


# -- the optimizer -------------------------------------------------------------------------------


@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
def test_it_is_torchs_sgd_with_momentum_one_half(tmp_path: Path, soft: bool) -> None:
    learned = begin(soft=soft)
    leaves = {name: part.clone().requires_grad_() for name, part in learned.tensors().items()}
    # The published rate is for alpha itself; on log(alpha) it is divided by alpha_0^2.
    rates = {"images": 0.3, "log_step_size": 1e-3 / 0.02**2, "label_logits": 0.7}
    groups = [{"params": [leaf], "lr": rates[name]} for name, leaf in leaves.items()]
    optimizer = torch.optim.SGD(groups, momentum=0.5)
    for _ in range(6):
        optimizer.zero_grad()
        labels = leaves["label_logits"].softmax(1) if soft else None
        plain_loss(leaves["images"], leaves["log_step_size"].exp(), labels, 0.05).backward()
        optimizer.step()

    last = run(tmp_path, initial=learned, lr_label=0.7).last
    close = {"rtol": 1e-12, "atol": 1e-12}
    torch.testing.assert_close(last.images, leaves["images"].detach(), **close)
    assert last.step_size == pytest.approx(leaves["log_step_size"].exp().item(), rel=1e-12)
    assert abs(last.step_size - 0.02) > 0.0005
    if soft:
        torch.testing.assert_close(last.labels, leaves["label_logits"].detach().softmax(1), **close)
        assert (last.labels - learned.labels).abs().max() > 0.05
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
    moved = [not torch.equal(method.seen[i].images, method.seen[i + 1].images) for i in range(5)]
    assert moved == [True, True, True, False, False]
    assert method.seen[3] is method.seen[4] is method.seen[5]
    # Momentum stood still too: what follows is as if those two had not been.
    never = run(tmp_path / "never", iterations=4)
    assert torch.equal(outcome.last.images, never.last.images)
    assert outcome.last.step_size == never.last.step_size


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
    said = str(error.value)
    for part in ("50 updates in a row", "iteration 51", "loss 7.25", "skip_loss 1.5"):
        assert part in said
    for mend in ("--lr-img (now 0.3)", "--step-size", "--skip-loss"):
        assert mend in said
    assert "\n" not in said


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
    assert method.seen[3] is method.seen[2]
    # The momentum that may have led there is gone: the next update is the gradient alone.
    before, after = method.seen[3], method.seen[4]
    torch.testing.assert_close(after.images, before.images - 0.3 * (before.images - GOAL))
    slope = 2 * (before.step_size - 0.05) * before.step_size
    torch.testing.assert_close(after.log_step_size, before.log_step_size - 1e-3 / 0.02**2 * slope)
    assert outcome.last.images.isfinite().all()
    told = losses(tmp_path)[2]
    assert (told["loss"] is None) == (part == "loss")


def test_fifty_that_are_not_finite_end_the_run(tmp_path: Path) -> None:
    harm = dict.fromkeys(range(1, 99), worse("images", math.nan))
    with pytest.raises(SettingError, match="50 updates in a row"):
        run(tmp_path, Quadratic(harm=harm), iterations=99, **RARELY)


# -- what is kept --------------------------------------------------------------------------------


def test_the_average_of_the_images_is_what_is_kept(tmp_path: Path) -> None:
    method, plain = Quadratic(), Quadratic()
    outcome = run(tmp_path / "averaged", method, ema=0.75)
    alone = run(tmp_path / "plain", plain)
    average = begin().images
    for iteration in range(1, 6):
        average = 0.75 * average + 0.25 * method.seen[iteration].images
        assert torch.equal(method.seen[iteration].images, plain.seen[iteration].images)
    average = 0.75 * average + 0.25 * alone.last.images
    torch.testing.assert_close(outcome.last.images, average, rtol=1e-12, atol=1e-12)
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
    for name, made in (("best", outcome.best), ("last", outcome.last)):
        assert torch.equal(SyntheticSet.load(tmp_path / "run" / name).images, made.images)


def test_of_equal_scores_the_first_is_best(tmp_path: Path) -> None:
    assert run(tmp_path, scores={2: 10.0, 4: 10.0, 6: 10.0}).best_iteration == 2


def test_the_last_iteration_is_judged_wherever_it_falls(tmp_path: Path) -> None:
    outcome = run(tmp_path, iterations=5, eval_every=2)
    judged = [r["step"] for r in read_log(tmp_path / "log.jsonl") if "val_mean" in r]
    assert judged == [2, 4, 5]
    assert (outcome.best_iteration, outcome.last.info["iteration"]) == (5, 5)


# -- the log and the snapshots -------------------------------------------------------------------


def test_the_log_has_a_line_an_iteration(tmp_path: Path) -> None:
    method = Quadratic()
    run(tmp_path, method)
    lines = losses(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert line.keys() == {
            "time", "step", "loss", "step_size", "grad_norm", "skipped", "seconds",
        }  # fmt: skip
        seen = method.seen[line["step"] - 1]
        assert line["step_size"] == pytest.approx(seen.step_size.item(), rel=1e-12)
        assert line["grad_norm"] == pytest.approx((seen.images - GOAL).norm().item(), rel=1e-12)
        assert line["loss"] == pytest.approx(
            float(plain_loss(seen.images, seen.step_size, None, 0.05)), rel=1e-12
        )
        assert line["seconds"] > 0
    judged = [line for line in read_log(tmp_path / "log.jsonl") if "val_mean" in line]
    assert [(r["step"], r["val_mean"], r["val_n"]) for r in judged] == [
        (2, 2.0, 2), (4, 4.0, 2), (6, 6.0, 2),
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
        pictures = package(method.seen[iteration], iteration).pixels()
        assert torch.equal(file.read("images"), pictures)
        assert file.read("images").dtype == torch.uint8
        assert torch.equal(file.read("labels"), CLASSES)


def test_each_iteration_is_told_of(tmp_path: Path) -> None:
    told = []
    run_loop(
        Quadratic(), begin(), CONFIG, tmp_path, package=package,
        validate=lambda made, iteration: score(1.0), origin=ORIGIN,
        on_iteration=lambda iteration, values: told.append((iteration, values["loss"])),
    )  # fmt: skip
    assert told == [(line["step"], line["loss"]) for line in losses(tmp_path)]


# -- going on ------------------------------------------------------------------------------------

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


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 7, 8, 11, 12])
def test_an_interrupted_run_ends_as_if_it_had_not_been(
    tmp_path: Path, undisturbed: Path, stop_at: int
) -> None:
    interrupted(tmp_path, stop_at, eventful(), initial=begin(soft=True), scores=SCORES, **SETTINGS)
    method = eventful()
    outcome = run(tmp_path, method, initial=begin(soft=True), scores=SCORES, **SETTINGS)
    same_checkpoint(tmp_path, undisturbed)
    assert without_clock(tmp_path) == without_clock(undisturbed)
    assert sorted(p.name for p in (tmp_path / "snapshots").iterdir()) == sorted(
        p.name for p in (undisturbed / "snapshots").iterdir()
    )
    for name, made in (("best", outcome.best), ("last", outcome.last)):
        other = SyntheticSet.load(undisturbed / name)
        assert torch.equal(made.images, other.images)
        assert torch.equal(made.labels, other.labels)
        assert (made.step_size, made.info) == (other.step_size, other.info)
    assert outcome.best_iteration == 4
    # No more is done again than what followed the last checkpoint or evaluation.
    saved = [i for i in (0, 3, 4, 6, 8, 9, 12) if i <= stop_at]
    assert sorted(method.seen) == list(range(saved[-1], 12))


def test_interrupted_at_every_iteration(tmp_path: Path, undisturbed: Path) -> None:
    often = {**SETTINGS, "checkpoint_every": 1}
    for stop_at in range(1, 12):
        interrupted(tmp_path, stop_at, eventful(), initial=begin(soft=True), scores=SCORES, **often)
    run(tmp_path, eventful(), initial=begin(soft=True), scores=SCORES, **often)
    same_checkpoint(tmp_path, undisturbed)
    assert without_clock(tmp_path) == without_clock(undisturbed)


def test_a_method_is_told_what_it_decided(tmp_path: Path) -> None:
    interrupted(tmp_path, 4)
    method = Quadratic()
    outcome = run(tmp_path, method)
    assert min(method.seen) == 4
    assert method.decisions == outcome.decisions == {"decided at": 0}


def test_more_iterations_extend_a_finished_run(tmp_path: Path) -> None:
    short = run(tmp_path / "run")
    assert short.iterations == 6
    method = Quadratic()
    long = run(tmp_path / "run", method, iterations=10)
    assert sorted(method.seen) == [6, 7, 8, 9]
    straight = run(tmp_path / "straight", iterations=10)
    assert long.iterations == long.best_iteration == straight.best_iteration == 10
    assert torch.equal(long.last.images, straight.last.images)
    assert without_clock(tmp_path / "run") == without_clock(tmp_path / "straight")
    assert long.seconds > short.seconds > 0


@pytest.mark.parametrize("iterations", [6, 3])
def test_a_finished_run_is_not_run_again(tmp_path: Path, iterations: int) -> None:
    first = run(tmp_path)
    log = (tmp_path / "log.jsonl").read_bytes()
    method = Quadratic()
    again = run(tmp_path, method, iterations=iterations)
    assert method.seen == {}
    assert (again.iterations, again.best_iteration) == (6, 6)
    assert torch.equal(again.best.images, first.best.images)
    assert again.seconds == first.seconds
    assert (tmp_path / "log.jsonl").read_bytes() == log


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
    said = str(error.value)
    assert f"{name}={ORIGIN.get(name)}" in said
    assert f"{name}={value}" in said
    assert "another --out" in said
    assert "\n" not in said
    assert method.seen == {}
    assert contents(tmp_path) == before


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
    assert method.seen == {}
    assert contents(out) == before
    assert CHECKPOINT in str(error.value)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(tmp_path: Path, stopped: Path, share: float) -> None:
    out = Path(shutil.copytree(stopped, tmp_path / "copy"))
    whole = (out / CHECKPOINT).read_bytes()
    (out / CHECKPOINT).write_bytes(whole[: int(len(whole) * share)])
    said = refused_for_its_checkpoint(out)
    assert "delete it" in said


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
