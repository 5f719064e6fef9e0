"""Fresh networks on a small set: training against torch's own optimizer, and the score."""

from __future__ import annotations

import dataclasses
import json
import statistics

import pytest
import torch
from torch import nn

from trajmatch import rng
from trajmatch.config import EvaluateConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError
from trajmatch.evaluation import (
    Score,
    TestSet,
    Trained,
    TrainingSet,
    TrainingSettings,
    accuracy,
    evaluate_sets,
    is_finite,
    train_network,
)
from trajmatch.evaluation.task import MappedTensor
from trajmatch.evaluation.workers import measured_seconds, worker_count
from trajmatch.networks import NetworkSpec, parameter_vector
from trajmatch.runtime.progress import SILENT, Silent
from trajmatch.runtime.resources import Resources

SPEC = NetworkSpec("convnet", 1, 3, 8, {"width": 4, "depth": 1})


def easy_data(per_class, seed=0, noise=0.8):
    """Three classes of 8x8 images, told apart by where a bright bar stands."""
    labels = torch.arange(3).repeat(per_class)
    images = noise * torch.randn(len(labels), 1, 8, 8, generator=torch.manual_seed(seed))
    for i, label in enumerate(labels.tolist()):
        images[i, 0, :, 3 * label : 3 * label + 2] += 1.0
    return images, labels


def trained(images, labels, *, seed=0, **settings):
    module = SPEC.build(seed=0).to(images.dtype)
    settings = TrainingSettings(**{"lr": 0.05, "epochs": 5, **settings})
    train_network(module, images, labels, settings, seed=seed)
    return parameter_vector(module)


# Training.


def reference_training(images, labels, *, lr, epochs, batch, seed, momentum, weight_decay):
    """The slow clear twin: torch's SGD, and the released code's new optimizer at the drop."""
    module = SPEC.build(seed=0).to(images.dtype)

    def optimizer(rate):
        return torch.optim.SGD(
            module.parameters(), lr=rate, momentum=momentum, weight_decay=weight_decay
        )

    sgd = optimizer(lr)
    for epoch in range(epochs):
        if epoch == epochs // 2 + 1:
            sgd = optimizer(0.1 * lr)
        order = torch.arange(len(images))
        if len(images) > batch:
            order = torch.randperm(len(images), generator=rng.stream(seed, "shuffle", epoch))
        for start in range(0, len(images), batch):
            chosen = order[start : start + batch]
            loss = nn.functional.cross_entropy(module(images[chosen]), labels[chosen])
            sgd.zero_grad()
            loss.backward()
            sgd.step()
    return parameter_vector(module)


@pytest.mark.parametrize("batch", [256, 9, 4])
@pytest.mark.parametrize("epochs", [1, 7, 8])
def test_training_is_its_reference_twin(batch, epochs):
    images, labels = easy_data(3)
    settings = {"lr": 0.1, "epochs": epochs, "batch": batch, "seed": 3}
    settings |= {"momentum": 0.9, "weight_decay": 5e-2}
    ours = trained(images.double(), labels, **settings)
    twin = reference_training(images.double(), labels, **settings)
    torch.testing.assert_close(ours, twin, rtol=0, atol=1e-10)


def test_probabilities_of_certain_labels_train_like_indices():
    images, labels = easy_data(2)
    soft = torch.eye(3)[labels]
    torch.testing.assert_close(trained(images, soft), trained(images, labels))
    assert not torch.allclose(trained(images, soft * 0.5 + 1 / 6), trained(images, labels))


@pytest.mark.parametrize("batch", [4, 256])  # shuffled and augmented; only augmented
def test_the_same_seed_gives_the_same_bits_and_another_does_not(batch):
    images, labels = easy_data(2)
    before = torch.get_rng_state()
    runs = [
        trained(images, labels, seed=seed, augment=Augmentation(), batch=batch)
        for seed in (1, 1, 2)
    ]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert torch.equal(torch.get_rng_state(), before)


def test_every_batch_is_augmented_with_a_draw_of_its_own():
    """With nothing but noughts left of the images, only biases can learn."""
    drawn = []

    class Spy(Augmentation):
        def draw(self, *args):
            drawn.append(super().draw(*args))
            return drawn[-1]

        def apply(self, images, draw):
            assert draw is drawn[-1]
            return torch.zeros_like(images)

    images, labels = easy_data(2)
    start, end = (
        parameter_vector(SPEC.build(seed=0)),
        trained(images, labels, augment=Spy(), batch=4, weight_decay=0.0),
    )
    assert len(drawn) == 5 * 2
    assert len({draw.name for draw in drawn}) > 1
    weights = SPEC.build(seed=0).features[0].weight.numel()
    assert torch.equal(start[:weights], end[:weights])
    assert not torch.equal(start[-3:], end[-3:])


def test_batch_norm_learns_its_statistics_and_the_mode_is_put_back():
    images, labels = easy_data(4)
    module = NetworkSpec("convnet", 1, 3, 8, {"width": 4, "depth": 1, "norm": "batch"}).build(
        seed=0
    )
    module.eval()
    train_network(module, images, labels, TrainingSettings(lr=0.05, epochs=30))
    norm = next(part for part in module.modules() if isinstance(part, nn.BatchNorm2d))
    assert not module.training
    assert norm.num_batches_tracked == 30
    assert not torch.equal(norm.running_mean, torch.zeros(4))
    assert accuracy(module, *easy_data(20, seed=1)) > 80


def test_trained_parameters_have_memory_of_their_own():
    images, labels = easy_data(1)
    module = SPEC.build(seed=0)
    train_network(module, images, labels, TrainingSettings(lr=0.05, epochs=1))
    places = [p.untyped_storage().data_ptr() for p in module.parameters()]
    assert len(set(places)) == len(places)


def test_frozen_parameters_stay():
    images, labels = easy_data(1)
    module = SPEC.build(seed=0)
    module.classifier.weight.requires_grad_(False)
    before = module.classifier.weight.clone()
    train_network(module, images, labels, TrainingSettings(lr=0.05, epochs=2))
    assert torch.equal(module.classifier.weight, before)


# Accuracy.


class Brightest(nn.Module):
    """Says the column that is brightest, so its right and wrong answers can be counted by hand."""

    def __init__(self):
        super().__init__()
        self.one = nn.Parameter(torch.ones(()))

    def forward(self, images):
        assert not self.training
        return self.one * images.sum(dim=(1, 2))


@pytest.mark.parametrize("batch", [1, 3, 512])
def test_accuracy_in_percent(batch):
    images = torch.zeros(8, 1, 4, 4)
    said = torch.tensor([0, 1, 2, 3, 0, 1, 2, 3])
    images[range(8), 0, 0, said] = 1.0
    module = Brightest()
    assert accuracy(module, images, torch.tensor([0, 1, 2, 3, 3, 2, 1, 3]), batch) == 62.5
    assert module.training


def test_training_in_bf16_ends_near_that_in_float32():
    images, labels = easy_data(2)
    start = trained(images, labels, epochs=1, lr=0.0, weight_decay=0.0)
    wide, rounded = (trained(images, labels, precision=each) for each in ("float32", "bf16"))
    apart = (rounded - wide).norm() / (wide - start).norm()
    assert 0 < apart < 0.05


def test_a_protocol_says_that_training_was_in_bf16():
    images, labels = easy_data(2)
    scores = [
        evaluate_sets(
            [TrainingSet(images, labels, 0.05)],
            SPEC,
            EvaluateConfig(n=1, epochs=2, workers=1, precision=precision),
            TestSet(images, labels),
        )[0]
        for precision in ("float32", "bf16")
    ]
    assert scores[0].protocol.endswith("batch 256, DSA")
    assert scores[1].protocol.endswith("batch 256, DSA, bf16")


# The protocol.


CONFIG = EvaluateConfig(n=3, epochs=40, lr=0.05, workers=1)


TEST = TestSet(*easy_data(30, seed=1))


def evaluate(config=CONFIG, *, test=TEST, resources=Resources(), progress=SILENT, **about):
    training_set = TrainingSet(*easy_data(2), **about)
    (score,) = evaluate_sets(
        [training_set], SPEC, config, test, seed=5, resources=resources, progress=progress
    )
    return score


def test_a_score_says_what_it_is():
    val = dataclasses.replace(TEST, split="val", whitening="zca")
    score = evaluate(method="mtt", ipc=2, test=val)
    assert score.n == len(score.values) == 3
    assert score.mean == pytest.approx(statistics.fmean(score.values))
    assert score.sd == pytest.approx(statistics.stdev(score.values))
    assert score.mean > 80  # chance is 33
    assert len(set(score.values)) > 1
    assert (score.method, score.ipc, score.split, score.diverged) == ("mtt", 2, "val", 0)
    assert score.model == SPEC.describe()
    assert score.protocol == "40 epochs, lr 0.05, momentum 0.9, wd 0.0005, batch 256, DSA"
    assert str(score) == (
        f"{score.mean:.1f} +- {score.sd:.1f} (n=3, {SPEC.describe()}, ZCA, DSA, 40 epochs)"
    )


@pytest.mark.parametrize(
    ("name", "word"), [("zca", "ZCA"), ("zca-compact", "ZCA"), ("normalize", "normalized")]
)
def test_a_score_names_the_whitening(name, word):
    few = dataclasses.replace(CONFIG, epochs=1, n=1)
    test = dataclasses.replace(TEST, whitening=name)
    assert evaluate(config=few, test=test).brief == f"{word}, DSA, 1 epochs"


def test_a_score_survives_json():
    score = evaluate(config=dataclasses.replace(CONFIG, epochs=1, n=2))
    values = json.loads(json.dumps({**score.to_json(), "added": "by a later version"}))
    assert Score.from_json(values) == score


def test_how_a_score_reads():
    known = {"method": "mtt", "ipc": 1, "protocol": "50 epochs, lr 0.01", "split": "test"}
    known["model"] = "ConvNet-D3 width 128 instance"
    five = Score.of([63.0, 63.5, 62.7, 63.0, 63.3], **known, brief="ZCA, DSA, 1000 epochs")
    assert str(five) == "63.1 +- 0.3 (n=5, ConvNet-D3 width 128 instance, ZCA, DSA, 1000 epochs)"
    one = Score.of([63.0], **known)
    assert one.sd is None
    assert str(one) == "63.0 (n=1, ConvNet-D3 width 128 instance, 50 epochs, lr 0.01)"


def test_the_networks_are_the_first_of_a_longer_series():
    """Network i depends on the seed and i alone."""
    short = evaluate(config=dataclasses.replace(CONFIG, epochs=5, n=2))
    long = evaluate(config=dataclasses.replace(CONFIG, epochs=5, n=4))
    assert long.values[:2] == short.values


@pytest.mark.parametrize(
    ("configured", "given", "used"),
    [(0.05, 0.002, 0.05), (None, 0.00204, 0.00204), (None, None, 0.01)],
)
def test_which_learning_rate_counts(configured, given, used):
    config = EvaluateConfig(n=1, epochs=1, lr=configured, workers=1, augment="none")
    score = evaluate(config=config, lr=given)
    assert f"lr {used:g}," in score.protocol
    assert score.protocol.endswith("no augmentation")


def test_diverged_networks_are_counted_and_named():
    score = evaluate(config=dataclasses.replace(CONFIG, lr=1e20, epochs=3))
    assert score.diverged == 3
    assert score.mean == pytest.approx(100 / 3)  # always class 0, of three equal ones
    assert str(score).endswith(", 3 diverged)")


def test_is_finite():
    module = SPEC.build(seed=0)
    assert is_finite(module)
    with torch.no_grad():
        module.classifier.bias[1] = torch.inf
    assert not is_finite(module)


class Threads(Silent):
    """How many threads torch has while a network is trained."""

    def __init__(self):
        self.counts = []

    def update(self, task, done, total, **values):
        self.counts.append(torch.get_num_threads())


def test_networks_are_trained_by_one_thread_whatever_the_caller_has():
    threads = Threads()
    torch.set_num_threads(2)
    evaluate(progress=threads)
    assert set(threads.counts) == {1}
    assert torch.get_num_threads() == 2


@pytest.mark.slow
def test_the_number_of_workers_changes_nothing():
    config = dataclasses.replace(CONFIG, epochs=5)
    assert evaluate(config, resources=Resources(workers=2)) == evaluate(config)


def test_soft_labels_reach_the_workers_whole(tmp_path):
    soft = torch.rand(5, 3, generator=torch.manual_seed(0)).T.softmax(0)  # not contiguous
    mapped = MappedTensor.write(soft.contiguous(), tmp_path / "soft")
    assert torch.equal(mapped.read(), soft)


@pytest.mark.parametrize(
    ("seconds", "networks", "cores", "workers"),
    [(100.0, 5, 4, 4), (0.5, 5, 4, 1), (None, 1, 4, 1), (100.0, 2, 8, 2), (None, 5, 1, 1)],
)
def test_processes_are_started_where_they_pay(seconds, networks, cores, workers):
    """None: where one process is sure, nothing is measured."""

    def measured():
        assert seconds is not None
        return seconds

    assert worker_count(networks, cores, measured) == workers


def test_the_estimate_of_the_time_grows_with_the_work():
    images, _ = easy_data(10)
    few = measured_seconds(SPEC, EvaluateConfig(epochs=10), images)
    many = measured_seconds(SPEC, EvaluateConfig(epochs=10_000), images)
    assert 0 < 20 * few < many


@pytest.mark.parametrize("which", ["set", "test"])
def test_images_that_do_not_fit_the_network_are_refused(which):
    images, labels = easy_data(1)
    wide = images.expand(-1, 3, -1, -1)
    trained_on, tested_on = (wide, images) if which == "set" else (images, wide)
    with pytest.raises(MismatchError, match=r"3x8x8 .* takes 1x8x8"):
        evaluate_sets([TrainingSet(trained_on, labels)], SPEC, CONFIG, TestSet(tested_on, labels))


class Scores(Silent):
    """The methods of the scores, in the order in which they are reported."""

    def __init__(self):
        self.methods = []

    def event(self, name, **values):
        if name == "score":
            self.methods.append(values["method"])


def two_sets():
    images, labels = easy_data(2)
    return [
        TrainingSet(images, labels, 0.02, "one", 1),
        TrainingSet(images[::2], labels[::2], None, "half", None),
    ]


def test_sets_together_score_as_each_alone():
    config, test = dataclasses.replace(CONFIG, epochs=4, n=2, lr=None), TestSet(*easy_data(3))
    sets, scores = two_sets(), Scores()
    together = evaluate_sets(sets, SPEC, config, test, progress=scores)
    alone = [evaluate_sets([each], SPEC, config, test)[0] for each in sets]
    assert together == alone
    assert scores.methods == ["one", "half"]
    assert "lr 0.02" in together[0].protocol
    assert "lr 0.01" in together[1].protocol


def test_results_are_kept_and_not_computed_again():
    config, test = dataclasses.replace(CONFIG, epochs=4, n=2, lr=None), TestSet(*easy_data(3))
    results = {(1, 0): Trained(12.5, False)}
    scores = evaluate_sets(two_sets(), SPEC, config, test, results=results)
    assert set(results) == {(k, i) for k in range(2) for i in range(2)}
    assert results[1, 0] == Trained(12.5, False)
    assert (scores[1].values[0], scores[1].diverged) == (12.5, 1)
    assert scores[0].values == tuple(results[0, i].percent for i in range(2))
    threads = Threads()
    assert (
        evaluate_sets(two_sets(), SPEC, config, test, results=results, progress=threads) == scores
    )
    assert threads.counts == []
