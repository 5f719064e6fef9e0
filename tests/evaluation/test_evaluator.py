"""A set on its way through networks: at which rate, on which images, and never twice the same."""

from __future__ import annotations

import dataclasses
import functools
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from trajmatch import pipeline
from trajmatch.config import EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Normalize
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import Score, evaluate_images, protocol
from trajmatch.evaluation import batch as rounds
from trajmatch.evaluation import evaluator as judging
from trajmatch.evaluation.learning_rate import LR_GRID, LR_NETWORKS, LR_ORIGIN
from trajmatch.networks import NetworkSpec
from trajmatch.rng import derive
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
def made() -> SyntheticSet:
    """Three images and the step size they were learned with."""
    images, labels = pictures(1, 3)
    whitening = Normalize(torch.tensor([0.3]), torch.tensor([0.3]))
    info = {"method": "mtt", "network": OWN.to_json()}
    return SyntheticSet(whitening.apply(images), labels, data().classes, whitening, 0.05, info)


def judge(config: EvaluateConfig = QUICK, **known: object) -> Score:
    """The score of the set, or of another, on the network that it was not made with."""
    values = {"small": made(), "data": data(), "networks": [OTHER], **known}
    (score,) = pipeline.evaluate(config=config, **values)
    return score


def expected(split: str, lr: float, *, seed: int, n: int = 2) -> Score:
    """What the same networks come to, asked one level lower."""
    real = rounds.split_of(data(), split)
    config = dataclasses.replace(QUICK, n=n, lr=lr)
    images = made().whitening.apply_split(real)
    return evaluate_images(
        made().images, made().labels, OTHER, config, images, real.labels, seed=seed
    )


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rates of the networks that were trained, in order."""
    rates: list[float] = []
    original = protocol.train_network

    def spy(*args: object, lr: float, **settings: object) -> None:
        original(*args, lr=lr, **settings)
        rates.append(lr)

    monkeypatch.setattr(protocol, "train_network", spy)
    return rates


# -- at which rate -------------------------------------------------------------------------------


def test_the_rate_that_is_best_on_validation_is_taken_to_the_test():
    seed = derive(4, "choose lr")
    tried = {lr: expected("val", lr, seed=seed, n=LR_NETWORKS).mean for lr in LR_GRID}
    best = max(tried, key=tried.__getitem__)
    assert list(tried.values()).count(tried[best]) == 1
    on_test = {lr: expected("test", lr, seed=seed, n=LR_NETWORKS).mean for lr in LR_GRID}
    assert on_test[best] < max(on_test.values())  # one who looked there would take another
    score = judge(seed=4)
    assert (score.lr, score.lr_origin, score.split) == (best, LR_ORIGIN, "test")
    assert f", lr {best:g} chosen on validation from {len(LR_GRID)}, " in score.protocol
    assert score.values == expected("test", best, seed=4).values


def test_rates_are_tried_on_validation_images_and_on_no_test_image(
    trained: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    original = protocol.accuracy

    def spy(module: object, images: torch.Tensor, labels: torch.Tensor, **how: object) -> float:
        seen.append((images, labels))
        return original(module, images, labels, **how)

    monkeypatch.setattr(protocol, "accuracy", spy)
    score = judge()
    assert trained == [lr for lr in LR_GRID for _ in range(LR_NETWORKS)] + [score.lr] * 2
    for number, (images, labels) in enumerate(seen):
        split = data().val if number < TRIALS else data().test
        assert torch.equal(images, made().whitening.apply_split(split))
        assert torch.equal(labels, split.labels)


def test_the_log_tells_of_every_trial(tmp_path: Path) -> None:
    score = judge(out=tmp_path)
    lines = read_log(tmp_path / "log.jsonl")
    trials = [line for line in lines if line.get("event") == "trial"]
    assert [line["lr"] for line in trials] == list(LR_GRID)
    assert {(line["split"], line["n"]) for line in trials} == {("val", LR_NETWORKS)}
    assert max(trials, key=lambda line: line["mean"])["lr"] == score.lr
    networks = [line for line in lines if line.get("event") == "network"]
    assert [line["split"] for line in networks] == ["val"] * TRIALS + ["test"] * 2


def test_networks_that_chose_a_rate_are_not_those_that_are_judged(tmp_path: Path) -> None:
    """They would be on validation images what they were on trial: the luck that made them win."""
    score = judge(out=tmp_path, split="val")
    lines = read_log(tmp_path / "log.jsonl")
    (trial,) = (e for e in lines if e.get("event") == "trial" and e["lr"] == score.lr)
    assert score.split == trial["split"]
    assert tuple(trial["values"]) != score.values


def test_the_sets_own_network_is_judged_at_the_sets_step_size(trained: list[float]) -> None:
    without = dataclasses.replace(data(), val=None)  # it would be missed
    for networks in (None, [NetworkConfig(network="convnet")], [OWN]):
        score = judge(networks=networks, data=without)
        assert (score.model, score.lr, score.lr_origin) == (OWN.describe(), 0.05, "")
        assert ", lr 0.05, momentum" in score.protocol
    assert trained == [0.05] * 6


def test_another_norm_or_width_makes_another_network(trained: list[float]) -> None:
    for network in (NetworkConfig(norm="none"), NetworkConfig(width=5)):
        assert judge(networks=[network]).lr_origin == LR_ORIGIN
    assert len(trained) == 2 * (TRIALS + 2)


def test_a_given_rate_holds_for_every_network(trained: list[float]) -> None:
    config = dataclasses.replace(QUICK, lr=0.02)
    without = dataclasses.replace(data(), val=None)
    for score in pipeline.evaluate(made(), without, networks=[OWN, OTHER], config=config):
        assert (score.lr, score.lr_origin) == (0.02, "")
        assert ", lr 0.02, momentum" in score.protocol
    assert trained == [0.02] * 4


def test_a_set_without_a_step_size_has_the_fields_rate_for_the_fields_networks(
    trained: list[float],
) -> None:
    chosen = dataclasses.replace(made(), step_size=None, info={"method": "random"})
    narrow = NetworkConfig(network="convnet", width=4, depth=1)
    score = judge(small=chosen, networks=[narrow])
    assert (score.lr, score.lr_origin, trained) == (0.01, "", [0.01, 0.01])
    assert judge(small=chosen).lr_origin == LR_ORIGIN
    assert len(trained) == 2 + TRIALS + 2


@pytest.mark.parametrize(
    ("best", "words"),
    [(LR_GRID[0], "is the smallest tried"), (LR_GRID[-1], "is the largest tried"), (0.003, None)],
)
def test_a_rate_at_an_end_of_the_grid_is_told(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    best: float,
    words: str | None,
) -> None:
    monkeypatch.setattr(judging, "best_rate", lambda scores: best)
    with caplog.at_level(logging.INFO, "trajmatch"):
        judge()
    assert [words in text for text in caplog.messages if "tried" in text] == [True] * bool(words)


# -- what is refused, before anything is trained --------------------------------------------------


def refuses(trained: list[float], out: Path, error: type[Exception], words: str, **known) -> None:
    with pytest.raises(error, match=words) as refusal:
        pipeline.evaluate(**{"small": made(), "data": data(), "config": QUICK, "out": out, **known})
    assert "\n" not in str(refusal.value)
    assert trained == []
    assert not out.exists()


def test_a_rate_cannot_be_chosen_without_validation_images(
    trained: list[float], tmp_path: Path
) -> None:
    refuses(
        trained,
        tmp_path / "out",
        SettingError,
        r"for MLP .* validation images.*have none; use data\.with_validation.* or .* --lr",
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
    trained: list[float], tmp_path: Path, spec: NetworkSpec, words: str
) -> None:
    refuses(trained, tmp_path / "out", MismatchError, words, networks=[OWN, spec])


# -- nothing is trained twice ---------------------------------------------------------------------


class Kill(BaseException):
    """As a killed process: nothing catches it."""


def killing(
    monkeypatch: pytest.MonkeyPatch,
    where: object,
    name: str,
    call: int,
    counts: Callable[..., bool] = lambda *args: True,
) -> None:
    """Die in the `call`-th call of `where.name` that `counts`."""
    original: Callable[..., object] = getattr(where, name)
    calls = 0

    def killed(*args: object, **known: object) -> object:
        nonlocal calls
        calls += counts(*args)
        if calls == call:
            raise Kill
        return original(*args, **known)

    monkeypatch.setattr(where, name, killed)


@pytest.mark.parametrize("call", [1, 2, 7, TRIALS + 1, TRIALS + 2])
def test_a_killed_evaluation_goes_on_with_what_it_has(
    tmp_path: Path, trained: list[float], call: int
) -> None:
    whole = judge(out=tmp_path / "whole")
    expected_rates, trained[:] = list(trained), []
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, protocol, "train_network", call)
        with pytest.raises(Kill):
            judge(out=out)
    assert len(trained) == call - 1
    if call > 1:  # the kill tore the line that was being written
        with (out / "log.jsonl").open("a") as log:
            log.write('{"event": "network", "of"')
    assert judge(out=out) == whole
    assert trained == expected_rates  # each of them once, over both calls
    lines = read_log(out / "log.jsonl")
    done = [(line["of"], line["number"]) for line in lines if line.get("event") == "network"]
    assert len(done) == len(set(done)) == TRIALS + 2


@pytest.mark.parametrize("call", [1, 4, 6])
def test_a_score_that_a_kill_kept_from_the_log_is_told_later(
    tmp_path: Path, trained: list[float], call: int
) -> None:
    """All networks of a round are in the log, and the kill comes before what they came to."""
    whole = judge(out=tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        killing(patch, judging.EvaluationLog, "event", call, lambda _, name: name != "network")
        with pytest.raises(Kill):
            judge(out=tmp_path / "out")
    del trained[:]
    for _ in range(2):
        assert judge(out=tmp_path / "out") == whole
    assert len(trained) == (0 if call == 6 else 2)

    def told(name: str) -> list[tuple[str, float]]:
        lines = read_log(tmp_path / name / "log.jsonl")
        return [(e["event"], e["mean"]) for e in lines if e.get("event") in ("trial", "score")]

    assert told("out") == told("whole")
    assert [event for event, _ in told("out")] == ["trial"] * 5 + ["score"]


def test_more_networks_train_only_what_is_added(
    tmp_path: Path, trained: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    def with_n(n: int) -> Score:
        del trained[:]
        return judge(dataclasses.replace(QUICK, n=n), out=tmp_path)

    two = with_n(2)
    five = with_n(5)
    assert trained == [two.lr] * 3
    assert five.values[:2] == two.values
    assert five.n == 5
    with caplog.at_level(logging.INFO, "trajmatch"):
        assert with_n(2) == two
    assert f"{OTHER.describe()}: found in {tmp_path / 'log.jsonl'}" in caplog.messages
    assert with_n(5) == five
    assert trained == []
    told = [line["n"] for line in read_log(tmp_path / "log.jsonl") if line["event"] == "score"]
    assert told == [2, 5]


def test_a_network_asked_for_twice_is_trained_once(tmp_path: Path, trained: list[float]) -> None:
    config = dataclasses.replace(QUICK, lr=0.01)
    for out in (None, tmp_path):
        del trained[:]
        one, other = pipeline.evaluate(
            made(), data(), networks=[OTHER, OTHER], config=config, out=out
        )
        assert one == other
        assert len(trained) == 2


FIXED = dataclasses.replace(QUICK, n=1, epochs=1, lr=0.01)


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The record of one network. Not to be written to."""
    out = tmp_path_factory.mktemp("judged") / "out"
    judge(FIXED, out=out)
    return out


def altered(split: str, what: str) -> ImageDataset:
    """The data with one pixel or one label of a split changed."""
    real = rounds.split_of(data(), split)
    parts = {"images": real.images.clone(), "labels": real.labels.clone()}
    flat = parts[what].view(-1)
    flat[0] = (flat[0] + 1) % 3
    return dataclasses.replace(data(), **{split: dataclasses.replace(real, **parts)})


def set_with(**changes: object) -> SyntheticSet:
    return dataclasses.replace(made(), **changes)


OTHERS = {
    "an image": lambda: {"small": set_with(images=made().images + torch.eye(8) / 100)},
    "a label": lambda: {"small": set_with(labels=made().labels.flip(0))},
    "soft labels": lambda: {"small": set_with(labels=torch.eye(3)[made().labels])},
    "whitening": lambda: {
        "small": set_with(whitening=Normalize(torch.tensor([0.3]), torch.tensor([0.2])))
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
    "what made it": lambda: {"small": set_with(info={**made().info, "iteration": 7})},
    "step size beside a given rate": lambda: {"small": set_with(step_size=0.06)},
}


@pytest.mark.parametrize("what", [*OTHERS, *SAME])
def test_what_a_record_holds_is_taken_up_only_for_the_same_work(
    judged: Path, tmp_path: Path, trained: list[float], what: str
) -> None:
    out = Path(shutil.copytree(judged, tmp_path / "out"))
    judge(**{"config": FIXED, "out": out, **{**OTHERS, **SAME}[what]()})
    assert len(trained) == (what in OTHERS)
    judge(FIXED, out=out)  # and the one before is still there
    assert len(trained) == (what in OTHERS)


def test_a_step_size_that_is_used_is_part_of_the_work(tmp_path: Path, trained: list[float]) -> None:
    for step_size in (0.05, 0.06, 0.05):
        judge(small=set_with(step_size=step_size), networks=[OWN], out=tmp_path)
    assert trained == [0.05, 0.05, 0.06, 0.06]


# -- progress -------------------------------------------------------------------------------------


def test_progress_counts_what_was_left(tmp_path: Path) -> None:
    def told(n: int) -> dict[str, tuple[int, int]]:
        last: dict[str, tuple[int, int]] = {}

        def progress(what: str, done: int, total: int) -> None:
            assert done > last.get(what, (0, 0))[0]
            last[what] = done, total

        judge(dataclasses.replace(QUICK, n=n), out=tmp_path, on_progress=progress)
        return last

    trials, networks = 3 * TRIALS, 3 * 2
    name = OTHER.describe()
    assert told(2) == {f"{name}, learning rate": (trials, trials), name: (networks, networks)}
    assert told(3) == {name: (3, 3)}
    assert told(3) == {}
