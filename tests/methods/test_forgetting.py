"""Forgetting: its events counted by hand, and what training tells of every image."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import tiny
from trajmatch import pipeline, rng
from trajmatch.config import DataConfig, ExpertConfig, NetworkConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import MismatchError, SettingError, TrajmatchError
from trajmatch.experts import train_expert
from trajmatch.methods.coresets import Forgetting, forgetting_counts
from trajmatch.methods.coresets.forgetting import count_forgetting
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.runtime.progress import Silent

SPEC = NetworkSpec("convnet", channels=1, classes=3, size=8, options={"depth": 1, "width": 4})
CONFIG = ExpertConfig(epochs=4, batch=16, lr=0.05)
N = 40  # no multiple of the batch


def any_generator(seed=0):
    return torch.Generator().manual_seed(seed)


def images_and_labels():
    """Three kinds of stripes in so much noise that some are missed."""
    labels = torch.arange(N) % 3
    images = torch.randn(N, 1, 8, 8, generator=any_generator())
    for i, label in enumerate(labels.tolist()):
        images[i, 0, label::3] += 0.5
    return images, labels


# -- counting ------------------------------------------------------------------------------------


def test_events_by_hand():
    histories = {
        "++++": 0,  # never forgotten
        "-+++": 0,  # learned late
        "+-++": 1,
        "+-+-": 2,  # the last time counts
        "+---": 1,  # forgotten for good is forgotten once
        "----": torch.inf,  # never learned
        "---+": 0,
    }
    right = torch.tensor([[sign == "+" for sign in line] for line in histories]).T
    assert count_forgetting(right).tolist() == list(histories.values())


def test_one_epoch_forgets_nothing():
    right = torch.tensor([[True, False]])
    assert count_forgetting(right).tolist() == [0, torch.inf]


def test_never_learned_come_first_then_the_most_forgotten_class_by_class():
    counts = torch.tensor([3.0, 1.0, torch.inf, 0.0, 2.0, 7.0, 0.0, torch.inf])
    labels = torch.tensor([0, 1, 0, 1, 1, 0, 0, 1])
    assert Forgetting().choose(counts, labels, 3, any_generator()).tolist() == [2, 5, 0, 7, 4, 1]


def test_equals_are_shuffled_by_the_generator():
    counts, labels = torch.tensor([0.0, 1, 1, 1, 1, 9]), torch.zeros(6, dtype=torch.int64)
    orders = [Forgetting().choose(counts, labels, 3, any_generator(s)).tolist() for s in range(60)]
    assert {order[0] for order in orders} == {5}
    assert {image for order in orders for image in order[1:]} == {1, 2, 3, 4}
    assert orders[0] == Forgetting().choose(counts, labels, 3, any_generator(0)).tolist()


# -- what training tells -------------------------------------------------------------------------


def reference_history(config, augment, seed):
    """The slow clear twin: an expert's batches again, each judged by the parameters before it."""
    images, labels = images_and_labels()
    recorded = train_expert(SPEC, images, labels, config, seed=seed, index=0)
    network = FunctionalNetwork(SPEC.build(seed=0))
    rows = []
    for epoch in range(config.epochs):
        order = torch.randperm(N, generator=rng.stream(seed, "expert", 0, "shuffle", epoch))
        draws = rng.stream(seed, "expert", 0, "augment", epoch)
        vector, right = recorded.parameters[epoch].clone(), [None] * N
        for start in range(0, N, config.batch):
            chosen = order[start : start + config.batch]
            x = images[chosen]
            if augment is not None:
                x = augment.apply(x, augment.draw(draws, len(x), 8, 8))
            leaf = vector.clone().requires_grad_()
            logits = network(leaf, x)
            torch.nn.functional.cross_entropy(logits, labels[chosen]).backward()
            vector = vector - config.lr * leaf.grad
            for i, hit in zip(chosen.tolist(), logits.argmax(1) == labels[chosen], strict=True):
                right[i] = bool(hit)
        rows.append(right)
    return rows


@pytest.mark.parametrize("strategy", ["none", "crop_flip"])
def test_counts_are_those_of_the_batches_an_expert_sees(strategy):
    config = dataclasses.replace(CONFIG, augment=strategy)
    augment = None if strategy == "none" else Augmentation(strategy)
    rows = reference_history(config, augment, rng.derive(5, "coreset", "forgetting"))
    expected = []
    for image in range(N):
        seen = [row[image] for row in rows]
        events = sum(a and not b for a, b in itertools.pairwise(seen))
        expected.append(events if any(seen) else torch.inf)
    assert len(set(expected)) > 2  # not all alike, or nothing would be tested
    assert forgetting_counts(SPEC, *images_and_labels(), config, seed=5).tolist() == expected


def test_watching_changes_nothing_and_misses_nothing():
    images, labels = images_and_labels()
    seen = []
    watched = train_expert(
        SPEC, images, labels, CONFIG, seed=1, index=0,
        on_batch=lambda epoch, chosen, right: seen.append((epoch, chosen, right)),
    )  # fmt: skip
    plain = train_expert(SPEC, images, labels, CONFIG, seed=1, index=0)
    assert torch.equal(watched.parameters, plain.parameters)
    for epoch, metrics in enumerate(watched.metrics):
        batches = [(chosen, right) for e, chosen, right in seen if e == epoch]
        assert torch.cat([c for c, _ in batches]).sort()[0].tolist() == list(range(N))
        hits = sum(int(right.sum()) for _, right in batches)
        assert metrics["train_accuracy"] == pytest.approx(100 * hits / N)


class Epochs(Silent):
    """The numbers of the epochs that are reported."""

    def __init__(self):
        self.numbers = []

    def event(self, name, **values):
        assert name == "epoch"
        self.numbers.append(values["epoch"])


def test_the_same_seed_forgets_the_same_and_each_epoch_is_reported():
    epochs = Epochs()
    data = images_and_labels()
    first = forgetting_counts(SPEC, *data, CONFIG, seed=0, progress=epochs)
    assert torch.equal(forgetting_counts(SPEC, *data, CONFIG, seed=0), first)
    assert not torch.equal(forgetting_counts(SPEC, *data, CONFIG, seed=1), first)
    assert epochs.numbers == [1, 2, 3, 4]


# -- on the digits -------------------------------------------------------------------------------

TRAINING = dataclasses.replace(tiny.EXPERTS, epochs=4)
UNTRAINED = pipeline.Untrained(tiny.NETWORK)


class Observer(Silent):
    """Keeps what a selection reports."""

    def __init__(self):
        self.epochs, self.done, self.said = [], [], []

    def event(self, name, **values):
        assert name == "epoch"
        self.epochs.append(values)

    def update(self, task, done, total, **values):
        self.done.append((done, total))

    def message(self, text):
        self.said.append(text)


def test_what_is_chosen_from_digits_was_forgotten_more_than_the_rest():
    observer = Observer()
    chosen = pipeline.select_coreset(
        "forgetting", tiny.digits(), 5, UNTRAINED, training=TRAINING, seed=2, progress=observer
    )  # fmt: skip
    assert [(e["epoch"], e["epochs"]) for e in observer.epochs] == [(n, 4) for n in (1, 2, 3, 4)]
    assert observer.done == [(n, 4) for n in (1, 2, 3, 4)]
    assert len(observer.said) == 1
    assert observer.said[0].startswith("forgetting: training ConvNet-D2 width 4")
    origin = chosen.info["forgetting"]
    assert (origin["epochs"], origin["lr"], "experts" in origin) == (4, 0.05, False)
    assert origin["threads"] == 1

    train = tiny.digits().train
    images = chosen.whitening.apply_split(train)
    spec = pipeline.network_for(tiny.digits(), tiny.NETWORK)
    counts = forgetting_counts(spec, images, train.labels, TRAINING, seed=2)
    for label in range(10):
        picked = chosen.images[chosen.labels == label]
        mine = [int((images == image).flatten(1).all(1).nonzero()[0]) for image in picked]
        assert len(set(mine)) == 5
        rest = set((train.labels == label).nonzero().flatten().tolist()) - set(mine)
        assert counts[mine].min() >= counts[sorted(rest)].max()


def test_a_librarys_network_whitening_and_training_are_taken():
    library = tiny.library()
    one = pipeline.select_coreset("forgetting", tiny.digits(), 1, experts=library)
    assert one.whitening.checksum == library.whitening.checksum
    told = one.info["forgetting"]
    assert (told["network"], told["epochs"], told["batch"]) == (library.spec.describe(), 3, 128)
    longer = pipeline.training_like(library, epochs=9)
    assert (longer.epochs, longer.batch, longer.lr) == (9, 128, 0.05)
    assert pipeline.training_like(None, lr=0.3) == ExpertConfig(lr=0.3)
    mlp, data = NetworkConfig(network="mlp"), tiny.digits()
    with pytest.raises(MismatchError, match="network"):
        pipeline.experts_or_untrained(library, data, mlp, DataConfig())


def test_what_cannot_be_trained_is_refused_or_told():
    observer = Observer()

    def choose(network=tiny.NETWORK, **changes):
        training = dataclasses.replace(TRAINING, epochs=1, **changes)
        pipeline.select_coreset(
            "forgetting",
            tiny.digits(),
            1,
            pipeline.Untrained(network),
            training=training,
            progress=observer,
        )

    with pytest.raises(SettingError, match="running statistics"):
        choose(dataclasses.replace(tiny.NETWORK, norm="batch"))
    assert observer.said == []
    with pytest.raises(TrajmatchError, match=r"diverged in epoch 1 .* use a smaller lr="):
        choose(lr=1e20)
