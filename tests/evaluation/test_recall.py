"""Accuracy by class: counted once, kept in the log, and never made up."""

from __future__ import annotations

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

import pytest
import torch

from trajmatch import pipeline, rng
from trajmatch.config import EvaluateConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import Normalize
from trajmatch.evaluation import TestSet, Trained, TrainingSet, evaluate_sets
from trajmatch.evaluation.train import TrainingSettings, accuracy, is_correct, train_network
from trajmatch.networks import NetworkSpec
from trajmatch.runtime.progress import Silent
from trajmatch.storage import read_log
from trajmatch.storage.results import Score
from trajmatch.synthetic import SyntheticSet

SPEC = NetworkSpec("convnet", 1, 3, 8, {"width": 4, "depth": 1})
CONFIG = EvaluateConfig(n=2, epochs=3, augment="none", workers=1)


def pictures(counts: tuple[int, ...], seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of three classes that are hard to tell apart."""
    labels = torch.arange(3).repeat_interleave(torch.tensor(counts))
    images = torch.rand(len(labels), 1, 8, 8, generator=torch.manual_seed(seed))
    for image, label in zip(images, labels.tolist(), strict=True):
        image[0, :, 3 * label : 3 * label + 2] += 0.3
    return images.clamp(0, 1), labels


def dataset(tests: tuple[int, ...] = (9, 2, 0)) -> ImageDataset:
    return ImageDataset.from_arrays(
        *pictures((8, 6, 4)), *pictures(tests, 1),
        val_images=pictures((2, 2, 2), 2)[0], val_labels=pictures((2, 2, 2), 2)[1],
    )  # fmt: skip


def three_images() -> SyntheticSet:
    images, labels = pictures((1, 1, 1), 3)
    whitening = Normalize(torch.tensor([0.5]), torch.tensor([0.3]))
    info = {"network": SPEC.to_json(), "method": "dm"}
    return SyntheticSet(whitening.apply(images), labels, ("0", "1", "2"), whitening, None, info)


def test_which_images_are_correct_is_what_accuracy_counts() -> None:
    module, (images, labels) = SPEC.build(seed=0), pictures((5, 5, 5))
    found = is_correct(module, images, labels, batch=4)
    assert torch.equal(found, module(images).argmax(1) == labels)
    assert accuracy(module, images, labels, batch=4) == 100 * int(found.sum()) / 15


def test_each_network_is_counted_by_class() -> None:
    """Against networks trained here, one by one."""
    images, labels = pictures((2, 2, 2))
    tests = pictures((9, 2, 0), 1)
    results: dict[Any, Trained] = {}
    (score,) = evaluate_sets(
        [TrainingSet(images, labels)], SPEC, CONFIG, TestSet(*tests), results=results
    )
    recalls = []
    for i in range(2):
        seed = rng.derive(0, "evaluate", i)
        module = SPEC.build(seed=seed)
        train_network(module, images, labels, TrainingSettings.of(CONFIG, 0.01), seed=seed)
        hits = is_correct(module, *tests)
        assert results[0, i].correct == (int(hits[:9].sum()), int(hits[9:].sum()), 0)
        recalls.append((100 * int(hits[:9].sum()) / 9, 100 * int(hits[9:].sum()) / 2))
    assert score.tests == (9, 2, 0)
    assert score.per_class == (*map(statistics.fmean, zip(*recalls, strict=True)), None)
    each = [statistics.fmean(pair) for pair in recalls]
    assert (score.balanced, score.balanced_sd) == (statistics.fmean(each), statistics.stdev(each))


def evaluated(out: Path, data: ImageDataset | None = None) -> Score:
    (score,) = pipeline.evaluate(three_images(), data or dataset(), config=CONFIG, out=out)
    return score


def edited(out: Path, change: Any) -> None:
    """Change every network's line of a log."""
    path = out / "log.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    for line in lines:
        if line["event"] == "network":
            del line["digest"]  # as in a log of version 0.1
            change(line)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_resumed_evaluation_has_the_same_numbers_by_class(tmp_path: Path) -> None:
    first = evaluated(tmp_path)
    lines = len(read_log(tmp_path / "log.jsonl"))
    assert evaluated(tmp_path) == first
    assert len(read_log(tmp_path / "log.jsonl")) == lines
    assert first.per_class[2] is None


@pytest.mark.parametrize(
    "change",
    [
        lambda line: line.pop("correct"),  # as version 0.1 wrote it
        lambda line: line.update(correct=[0, 0]),
        lambda line: line.update(correct=[c + 1 for c in line["correct"]]),
    ],
    ids=["absent", "fewer classes", "others than the accuracy"],
)
def test_counts_that_are_not_the_networks_are_left_out(tmp_path: Path, change: Any) -> None:
    first = evaluated(tmp_path)
    edited(tmp_path, change)
    again = evaluated(tmp_path)
    assert again == dataclasses.replace(first, per_class=(), balanced=None, balanced_sd=None)


@pytest.mark.parametrize("correct", [["9", None, 0], "all"], ids=["no numbers", "no list"])
def test_a_network_whose_counts_cannot_be_is_trained_again(tmp_path: Path, correct: Any) -> None:
    first = evaluated(tmp_path)
    edited(tmp_path, lambda line: line.update(correct=correct))
    assert evaluated(tmp_path) == first


def test_a_score_says_what_it_was_tested_on(tmp_path: Path) -> None:
    score = evaluated(tmp_path)
    assert score.caveats == (
        "test images of 2 of 3 classes", "largest class 81.8 % of the test images",
    )  # fmt: skip
    assert f"balanced accuracy {score.balanced:.1f} +- {score.balanced_sd:.1f})" in str(score)
    assert evaluated(tmp_path / "even", dataset((3, 3, 3))).notes == ()
    lacking = dataclasses.replace(dataset(), val=dataset((2, 2, 0)).test)
    made_of = {**three_images().info, "data": lacking.summary()}
    distilled = dataclasses.replace(three_images(), info=made_of)
    (val,) = pipeline.evaluate(distilled, lacking, config=CONFIG, split="val")
    assert val.notes == ("val images of 2 of 3 classes",)


class Networks(Silent):
    """Counts the networks that are trained."""

    count = 0

    def event(self, name: str, **values: Any) -> None:
        self.count += name == "network"


def test_a_ceiling_is_trained_on_all_images_and_resumed(tmp_path: Path) -> None:
    network = pipeline.Untrained(SPEC, three_images().whitening)
    data = dataset((3, 3, 3))
    first, more = Networks(), Networks()
    one = dataclasses.replace(CONFIG, n=1)
    score = pipeline.ceiling(data, network, config=one, out=tmp_path, progress=first)
    both = pipeline.ceiling(data, network, config=CONFIG, out=tmp_path, progress=more)
    assert (first.count, more.count) == (1, 1)
    assert (score.method, score.label, score.ipc) == ("ceiling", "all training images", None)
    images = three_images().whitening.apply_split(data.train)
    tests = three_images().whitening.apply_split(data.test)
    (expected,) = evaluate_sets(
        [TrainingSet(images, data.train.labels)], SPEC, CONFIG, TestSet(tests, data.test.labels)
    )
    assert both.values == expected.values
    assert both.values[:1] == score.values
    assert both.protocol.startswith("3 epochs, lr 0.01, momentum 0.9")
