"""The evaluation of one set: its learning rate, its log, its progress, and what it refuses."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch import pipeline
from trajmatch.config import EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Normalize
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score, TestSet, TrainingSet, evaluate_sets
from trajmatch.evaluation.batch import split_of
from trajmatch.evaluation.evaluator import Evaluator
from trajmatch.evaluation.learning_rate import LR_GRID, LR_NETWORKS, LR_ORIGIN, end_of_grid
from trajmatch.evaluation.resume import EvaluationLog
from trajmatch.networks import NetworkSpec
from trajmatch.rng import derive
from trajmatch.runtime.progress import Silent
from trajmatch.storage import read_log
from trajmatch.synthetic import SyntheticSet

OWN = NetworkSpec("convnet", 1, 3, 8, {"width": 4, "depth": 1})
OTHER = NetworkSpec("mlp", 1, 3, 8, {"width": 16})
QUICK = EvaluateConfig(n=2, epochs=3, augment="none", workers=1)
TRIALS = len(LR_GRID) * LR_NETWORKS


def pictures(per_class: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Three classes, told apart by where a bright bar stands."""
    labels = torch.arange(3).repeat(per_class)
    images = 0.5 * torch.rand(len(labels), 1, 8, 8, generator=torch.manual_seed(seed))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 0.5
    return images, labels


@functools.cache
def data() -> ImageDataset:
    """The labels of the test images are wrong: what is best on validation is worst on test."""
    images, labels = pictures(12, 2)
    val_images, val_labels = pictures(12, 1)
    return ImageDataset.from_arrays(
        *pictures(4, 0), images, (labels + 1) % 3, val_images=val_images, val_labels=val_labels
    )


@functools.cache
def distilled() -> SyntheticSet:
    """Three images and the step size they were learned with."""
    images, labels = pictures(1, 3)
    whitening = Normalize(torch.tensor([0.3]), torch.tensor([0.3]))
    info = {"method": "mtt", "network": OWN.to_json()}
    return SyntheticSet(whitening.apply(images), labels, data().classes, whitening, 0.05, info)


class Kill(BaseException):
    """As a killed process: nothing catches it."""


class Observer(Silent):
    """Keeps what an evaluation reports, and dies while the `kill_at`-th network is trained."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.finished = 0
        self.updates: list[tuple[str, int, int]] = []
        self.messages: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def update(self, task: str, done: int, total: int, **values: Any) -> None:
        self.updates.append((task, done, total))
        self.finished += done % QUICK.epochs == 0
        if self.finished == self.kill_at:  # before the network is tested and its result is kept
            raise Kill

    def message(self, text: str) -> None:
        self.messages.append(text)

    def event(self, name: str, **values: Any) -> None:
        self.events.append((name, values))

    @property
    def trained(self) -> list[float]:
        """The learning rates of the networks that were trained, in order."""
        return [values["lr"] for name, values in self.events if name == "network"]


@pytest.fixture
def observer() -> Observer:
    return Observer()


def score_of(config: EvaluateConfig = QUICK, **changes: object) -> Score:
    """The score of the set, or of another, on the network that it was not made with."""
    values = {"distilled": distilled(), "data": data(), "networks": [OTHER], **changes}
    (score,) = pipeline.evaluate(config=config, **values)
    return score


def expected(split: str, lr: float, *, seed: int, n: int = 2) -> Score:
    """The score of the same networks by `evaluate_sets`."""
    real = split_of(data(), split)
    config = dataclasses.replace(QUICK, n=n, lr=lr)
    test = TestSet(distilled().whitening.apply_split(real), real.labels)
    (score,) = evaluate_sets([TrainingSet.of(distilled())], OTHER, config, test, seed=seed)
    return score


# -- the learning rate ---------------------------------------------------------------------------


def test_the_rate_that_is_best_on_validation_is_taken_to_the_test():
    seed = derive(4, "choose lr")
    tried = {lr: expected("val", lr, seed=seed, n=LR_NETWORKS).mean for lr in LR_GRID}
    best = max(tried, key=tried.__getitem__)
    assert list(tried.values()).count(tried[best]) == 1
    on_test = {lr: expected("test", lr, seed=seed, n=LR_NETWORKS).mean for lr in LR_GRID}
    assert on_test[best] < max(on_test.values())  # one who looked there would take another
    score = score_of(seed=4)
    assert (score.lr, score.lr_origin, score.split) == (best, LR_ORIGIN, "test")
    assert f", lr {best:g} chosen on validation from {len(LR_GRID)}, " in score.protocol
    assert score.values == expected("test", best, seed=4).values


def test_rates_are_tried_on_validation_images(observer: Observer, tmp_path: Path) -> None:
    score = score_of(out=tmp_path, progress=observer)
    assert observer.trained == [lr for lr in LR_GRID for _ in range(LR_NETWORKS)] + [score.lr] * 2
    lines = read_log(tmp_path / "log.jsonl")
    values = [tuple(line["values"]) for line in lines if line.get("event") == "trial"]
    seed = derive(0, "choose lr")
    on_val = [expected("val", lr, seed=seed, n=LR_NETWORKS).values for lr in LR_GRID]
    assert values == on_val
    assert values != [expected("test", lr, seed=seed, n=LR_NETWORKS).values for lr in LR_GRID]
    assert score.values == expected("test", score.lr, seed=0).values


def test_the_log_tells_of_every_trial(tmp_path: Path) -> None:
    score = score_of(out=tmp_path)
    lines = read_log(tmp_path / "log.jsonl")
    trials = [line for line in lines if line.get("event") == "trial"]
    assert [line["lr"] for line in trials] == list(LR_GRID)
    assert {(line["split"], line["n"]) for line in trials} == {("val", LR_NETWORKS)}
    assert max(trials, key=lambda line: line["mean"])["lr"] == score.lr
    networks = [line for line in lines if line.get("event") == "network"]
    assert [line["split"] for line in networks] == ["val"] * TRIALS + ["test"] * 2


def test_networks_that_chose_a_rate_are_not_those_that_are_judged(tmp_path: Path) -> None:
    """They would be on validation images what they were on trial: the luck that made them win."""
    score = score_of(out=tmp_path, split="val")
    lines = read_log(tmp_path / "log.jsonl")
    (trial,) = (e for e in lines if e.get("event") == "trial" and e["lr"] == score.lr)
    assert score.split == trial["split"]
    assert tuple(trial["values"]) != score.values


def test_the_sets_own_network_is_trained_at_the_sets_step_size(observer: Observer) -> None:
    without = dataclasses.replace(data(), val=None)  # selecting a rate would need it
    for networks in (None, [NetworkConfig(network="convnet")], [OWN]):
        score = score_of(networks=networks, data=without, progress=observer)
        assert (score.model, score.lr, score.lr_origin) == (OWN.describe(), 0.05, "")
        assert ", lr 0.05, momentum" in score.protocol
    assert observer.trained == [0.05] * 6


def test_another_norm_or_width_makes_another_network(observer: Observer) -> None:
    for network in (NetworkConfig(norm="none"), NetworkConfig(width=5)):
        assert score_of(networks=[network], progress=observer).lr_origin == LR_ORIGIN
    assert len(observer.trained) == 2 * (TRIALS + 2)


def test_a_given_rate_holds_for_every_network(observer: Observer) -> None:
    config = dataclasses.replace(QUICK, lr=0.02)
    without = dataclasses.replace(data(), val=None)
    for network in (OWN, OTHER):
        score = score_of(config, networks=[network], data=without, progress=observer)
        assert (score.lr, score.lr_origin) == (0.02, "")
        assert ", lr 0.02, momentum" in score.protocol
    assert observer.trained == [0.02] * 4


def test_a_set_without_a_step_size_takes_the_fields_rate_for_the_fields_networks() -> None:
    coreset = dataclasses.replace(distilled(), step_size=None, info={"method": "random"})
    narrow, own, other = NetworkConfig(network="convnet", width=4, depth=1), Observer(), Observer()
    score = score_of(distilled=coreset, networks=[narrow], progress=own)
    assert (score.lr, score.lr_origin, own.trained) == (0.01, "", [0.01, 0.01])
    assert score_of(distilled=coreset, progress=other).lr_origin == LR_ORIGIN
    assert len(other.trained) == TRIALS + 2


@pytest.mark.parametrize(
    ("rate", "words"),
    [(LR_GRID[0], "is the smallest tried"), (LR_GRID[-1], "is the largest tried"), (0.003, None)],
)
def test_a_rate_at_an_end_of_the_grid_has_a_hint(rate: float, words: str | None) -> None:
    hint = end_of_grid(rate)
    assert (hint is None) if words is None else (words in hint)


def test_the_hint_is_a_message(observer: Observer) -> None:
    score = score_of(progress=observer)
    assert score.lr == LR_GRID[-1]  # three epochs are few: the larger the better
    hint, result = observer.messages
    assert hint == f"{OTHER.describe()}: {end_of_grid(LR_GRID[-1])}"
    assert result == f"{OTHER.describe()}: {score}"


# -- what is refused, before anything is trained --------------------------------------------------


def refuses(
    observer: Observer, out: Path, error: type[Exception], words: str, **changes: object
) -> None:
    with pytest.raises(error, match=words) as refusal:
        score_of(**{"out": out, "progress": observer, **changes})
    assert "\n" not in str(refusal.value)
    assert observer.trained == []
    assert not out.exists()


def test_a_rate_cannot_be_chosen_without_validation_images(
    observer: Observer, tmp_path: Path
) -> None:
    refuses(
        observer,
        tmp_path / "out",
        SettingError,
        r"for MLP .* validation images.*have none; use data\.with_validation.* or .* lr=",
        data=dataclasses.replace(data(), val=None),
        networks=[OWN, OTHER],
    )


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        (NetworkSpec("mlp", 1, 2, 8), r"^MLP.* 2 classes .*data have 3"),
        (NetworkSpec("mlp", 1, 4, 8), r"^MLP.* 4 classes .*data have 3"),
        (NetworkSpec("mlp", 3, 3, 8), r"^MLP.* 3x8x8 .*1x8x8"),
        (NetworkSpec("mlp", 1, 3, 16), r"^MLP.* 1x16x16 .*1x8x8"),
    ],
)
def test_a_network_for_other_images_or_classes(
    observer: Observer, tmp_path: Path, spec: NetworkSpec, words: str
) -> None:
    refuses(observer, tmp_path / "out", MismatchError, words, networks=[OWN, spec])


# -- nothing is trained twice ---------------------------------------------------------------------


@pytest.mark.parametrize("at", [1, 2, 7, TRIALS + 1, TRIALS + 2])
def test_a_killed_evaluation_resumes_from_its_log(tmp_path: Path, at: int) -> None:
    uninterrupted, killed, resumed = Observer(), Observer(kill_at=at), Observer()
    score = score_of(out=tmp_path / "whole", progress=uninterrupted)
    out = tmp_path / "out"
    with pytest.raises(Kill):
        score_of(out=out, progress=killed)
    assert len(killed.trained) == at - 1
    if at > 1:  # the kill tore the line that was being written
        with (out / "log.jsonl").open("a") as log:
            log.write('{"event": "network", "of"')
    assert score_of(out=out, progress=resumed) == score
    # Every network is trained once over both calls.
    assert killed.trained + resumed.trained == uninterrupted.trained
    lines = read_log(out / "log.jsonl")
    done = [(line["of"], line["number"]) for line in lines if line.get("event") == "network"]
    assert len(done) == len(set(done)) == TRIALS + 2


@pytest.mark.parametrize(
    ("digest", "percent", "said"),
    [(True, 99.0, "altered"), (False, 250, "percent is 250 where a number from 0 to 100")],
)
def test_a_result_that_was_altered_is_computed_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, digest: bool, percent: float, said: str
) -> None:
    first, again = Observer(), Observer()
    score = score_of(out=tmp_path, progress=first)
    log = tmp_path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    number = max(i for i, line in enumerate(lines) if line["event"] == "network")
    lines[number] |= {"percent": percent}
    if not digest:  # as version 0.1 wrote it
        del lines[number]["digest"]
    log.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert score_of(out=tmp_path, progress=again) == score
    assert again.trained == first.trained[-1:]
    assert said in caplog.text
    networks = [line for line in read_log(log) if line["event"] == "network"]
    assert len({(line["of"], line["number"]) for line in networks}) == len(networks)
    assert max(line["percent"] for line in networks) < percent


class KilledLog(EvaluationLog):
    """Dies before it writes the `kill_at`-th score."""

    kill_at = 0
    count = 0

    def event(self, name: str, **values: Any) -> None:
        self.count += name != "network"
        if self.count == self.kill_at:
            raise Kill
        super().event(name, **values)


@pytest.mark.parametrize("at", [1, 4, 6])
def test_a_score_that_a_kill_kept_from_the_log_is_written_later(
    tmp_path: Path, observer: Observer, at: int
) -> None:
    """All networks of a batch are in the log, and the kill comes before one of its scores."""
    score = score_of(out=tmp_path / "whole")
    with contextlib.closing(KilledLog(tmp_path / "out")) as log:
        log.kill_at = at
        evaluator = Evaluator(distilled(), data(), QUICK, log)
        with pytest.raises(Kill):
            evaluator.score(OTHER)
    for _ in range(2):
        assert score_of(out=tmp_path / "out", progress=observer) == score
    assert len(observer.trained) == (0 if at == 6 else 2)

    def scores(name: str) -> list[tuple[str, float]]:
        lines = read_log(tmp_path / name / "log.jsonl")
        return [(e["event"], e["mean"]) for e in lines if e.get("event") in ("trial", "score")]

    assert scores("out") == scores("whole")
    assert [event for event, _ in scores("out")] == ["trial"] * 5 + ["score"]


def test_more_networks_train_only_what_is_added(tmp_path: Path) -> None:
    def with_n(n: int) -> tuple[Score, Observer]:
        observer = Observer()
        config = dataclasses.replace(QUICK, n=n)
        return score_of(config, out=tmp_path, progress=observer), observer

    two, _ = with_n(2)
    five, added = with_n(5)
    assert added.trained == [two.lr] * 3
    assert five.values[:2] == two.values
    assert five.n == 5
    for n, score in ((2, two), (5, five)):
        again, observer = with_n(n)
        assert again == score
        assert observer.trained == []
        assert f"{OTHER.describe()}: found in {tmp_path / 'log.jsonl'}" in observer.messages
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["n"] for line in lines if line["event"] == "score"] == [2, 5]


def test_a_network_given_twice_is_trained_once(tmp_path: Path) -> None:
    config = dataclasses.replace(QUICK, lr=0.01)
    for out in (None, tmp_path):
        observer = Observer()
        one, other = pipeline.evaluate(
            distilled(), data(), networks=[OTHER, OTHER], config=config, out=out, progress=observer
        )
        assert one == other
        assert len(observer.trained) == 2


FIXED = dataclasses.replace(QUICK, n=1, epochs=1, lr=0.01)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The log of one network. Not to be written to."""
    out = tmp_path_factory.mktemp("evaluated") / "out"
    score_of(FIXED, out=out)
    return out


def altered(split: str, what: str) -> ImageDataset:
    """The data with one pixel or one label of a split changed."""
    real = split_of(data(), split)
    parts = {"images": real.images.clone(), "labels": real.labels.clone()}
    flat = parts[what].view(-1)
    flat[0] = (flat[0] + 1) % 3
    return dataclasses.replace(data(), **{split: dataclasses.replace(real, **parts)})


def set_with(**changes: object) -> SyntheticSet:
    return dataclasses.replace(distilled(), **changes)


OTHERS = {
    "an image": lambda: {"distilled": set_with(images=distilled().images + torch.eye(8) / 100)},
    "a label": lambda: {"distilled": set_with(labels=distilled().labels.flip(0))},
    "soft labels": lambda: {"distilled": set_with(labels=torch.eye(3)[distilled().labels])},
    "whitening": lambda: {
        "distilled": set_with(whitening=Normalize(torch.tensor([0.3]), torch.tensor([0.2])))
    },
    "a test image": lambda: {"data": altered("test", "images")},
    "a test label": lambda: {"data": altered("test", "labels")},
    "the cut": lambda: {"data": altered("val", "images")},
    "network": lambda: {"networks": [OWN]},
    "width": lambda: {"networks": [NetworkSpec("mlp", 1, 3, 8, {"width": 17})]},
    "seed": lambda: {"seed": 1},
    "split": lambda: {"split": "val"},
    "epochs": lambda: {"config": dataclasses.replace(FIXED, epochs=2)},
    "rate": lambda: {"config": dataclasses.replace(FIXED, lr=0.02)},
    "momentum": lambda: {"config": dataclasses.replace(FIXED, momentum=0.8)},
    "weight decay": lambda: {"config": dataclasses.replace(FIXED, weight_decay=0.0)},
    "batch": lambda: {"config": dataclasses.replace(FIXED, batch=2)},
    "augmentation": lambda: {"config": dataclasses.replace(FIXED, augment="flip")},
}
SAME = {
    "nothing": dict,
    "workers": lambda: {"config": dataclasses.replace(FIXED, workers=2)},
    "compiler": lambda: {"config": dataclasses.replace(FIXED, compile="yes")},
    "what made it": lambda: {"distilled": set_with(info={**distilled().info, "iteration": 7})},
    "step size beside a given rate": lambda: {"distilled": set_with(step_size=0.06)},
}


@pytest.mark.parametrize("what", [*OTHERS, *SAME])
def test_a_result_is_used_again_only_for_the_same_work(
    evaluated: Path, tmp_path: Path, observer: Observer, what: str
) -> None:
    out = Path(shutil.copytree(evaluated, tmp_path / "out"))
    changes = {**OTHERS, **SAME}[what]()
    score_of(**{"config": FIXED, "out": out, "progress": observer, **changes})
    assert len(observer.trained) == (what in OTHERS)
    score_of(FIXED, out=out, progress=observer)  # the earlier result is still there
    assert len(observer.trained) == (what in OTHERS)


def test_a_step_size_that_is_used_is_part_of_the_work(tmp_path: Path, observer: Observer) -> None:
    for step_size in (0.05, 0.06, 0.05):
        changed = set_with(step_size=step_size)
        score_of(distilled=changed, networks=[OWN], out=tmp_path, progress=observer)
    assert observer.trained == [0.05, 0.05, 0.06, 0.06]


# -- progress -------------------------------------------------------------------------------------


def test_progress_counts_the_epochs_that_were_left(tmp_path: Path) -> None:
    def last(n: int) -> dict[str, tuple[int, int]]:
        observer = Observer()
        score_of(dataclasses.replace(QUICK, n=n), out=tmp_path, progress=observer)
        assert observer.updates == sorted(observer.updates, key=lambda u: u[0] != "learning rate")
        by_task: dict[str, list[tuple[int, int]]] = {}
        for task, done, total in observer.updates:
            by_task.setdefault(task, []).append((done, total))
        for counts in by_task.values():
            assert counts == sorted(set(counts))
        return {task: counts[-1] for task, counts in by_task.items()}

    trials, networks = 3 * TRIALS, 3 * 2
    assert last(2) == {"learning rate": (trials, trials), "evaluation": (networks, networks)}
    assert last(3) == {"evaluation": (3, 3)}
    assert last(3) == {}


def test_trials_are_events_and_no_messages(observer: Observer) -> None:
    score = score_of(progress=observer)
    names = [name for name, _ in observer.events if name != "network"]
    assert names == ["trial"] * len(LR_GRID) + ["score"]
    assert Score.from_json(observer.events[-1][1]) == score
