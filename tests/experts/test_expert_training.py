"""One expert: what torch's own SGD would do, to the bit wherever it is taken up again."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from trajmatch import rng
from trajmatch.config import ExpertConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError, TrajmatchError
from trajmatch.experts.train import (
    augmentation_of,
    expert_accuracy,
    expert_epochs,
    gradient_step,
    sgd_update,
    train_expert,
)
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import parameter_vector

SPEC = NetworkSpec("convnet", channels=1, classes=3, size=8, options={"depth": 1, "width": 4})
CONFIG = ExpertConfig(experts=1, epochs=3, batch=16, lr=0.05, momentum=0.5, weight_decay=1e-3)
N = 40  # no multiple of the batch


def _data():
    """Three kinds of stripes, in noise: learnable at once."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(N) % 3
    images = 0.3 * torch.randn(N, 1, 8, 8, generator=generator)
    for i, label in enumerate(labels.tolist()):
        images[i, 0, label::3] += 2
    return images, labels


def _train(config=CONFIG, **keywords):
    return train_expert(SPEC, *_data(), config, **{"seed": 7, "index": 2, **keywords})


def _epochs(config=CONFIG, **keywords):
    return list(expert_epochs(SPEC, *_data(), config, **{"seed": 7, "index": 2, **keywords}))


def _reference(config, seed=7, index=2):
    """The slow clear twin: a module, torch.optim.SGD, one loop."""
    images, labels = _data()
    augment = augmentation_of(config)
    module = SPEC.build(seed=rng.derive(seed, "expert", index, "init"))
    optimizer = torch.optim.SGD(
        module.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay
    )
    rows = [parameter_vector(module)]
    for epoch in range(config.epochs):
        shuffle = rng.stream(seed, "expert", index, "shuffle", epoch)
        draws = rng.stream(seed, "expert", index, "augment", epoch)
        order = torch.randperm(N, generator=shuffle)
        for start in range(0, N, config.batch):
            chosen = order[start : start + config.batch]
            x = images[chosen]
            if augment:
                x = augment.apply(x, augment.draw(draws, len(x), 8, 8))
            optimizer.zero_grad()
            F.cross_entropy(module(x), labels[chosen]).backward()
            optimizer.step()
        rows.append(parameter_vector(module))
    return torch.stack(rows)


@pytest.mark.parametrize("augment", [ExpertConfig().augment, None], ids=["dsa", "plain"])
@pytest.mark.parametrize(
    ("momentum", "weight_decay"), [(0.0, 0.0), (0.5, 1e-2), (0.0, 1e-2), (0.9, 0.0)]
)
def test_same_as_torchs_sgd(augment, momentum, weight_decay):
    config = dataclasses.replace(
        CONFIG, momentum=momentum, weight_decay=weight_decay, augment=augment
    )
    rows = _train(config).parameters
    torch.testing.assert_close(rows, _reference(config), rtol=1e-5, atol=1e-6)


def test_the_config_names_the_augmentation():
    assert augmentation_of(CONFIG) == Augmentation()
    assert augmentation_of(dataclasses.replace(CONFIG, augment="flip")) == Augmentation("flip")
    for none in (None, "none"):
        assert augmentation_of(dataclasses.replace(CONFIG, augment=none)) is None
    with pytest.raises(SettingError, match="unknown augmentation 'flop'"):
        _train(dataclasses.replace(CONFIG, augment="flop"))


def test_recorded_rows_are_copies_and_complete():
    """Snapshots that alias one tensor make every segment of length zero, and the loss 0/0."""
    state = _train()
    assert state.parameters.shape == (4, SPEC.parameters())
    steps = (state.parameters[1:] - state.parameters[:-1]).norm(dim=1)
    assert (steps > 1e-3).all()
    assert torch.equal(state.parameters[3], state.vector)
    start = parameter_vector(SPEC.build(seed=rng.derive(7, "expert", 2, "init")))
    assert torch.equal(state.parameters[0], start)


def test_a_state_is_not_changed_by_later_epochs():
    epochs = expert_epochs(SPEC, *_data(), CONFIG, seed=7, index=2)
    states = [(s, s.parameters.clone(), s.vector.clone(), s.velocity.clone()) for s in epochs]
    assert [state.epochs for state, *_ in states] == [1, 2, 3]
    for state, parameters, vector, velocity in states:
        assert torch.equal(state.parameters, parameters)
        assert torch.equal(state.vector, vector)
        assert torch.equal(state.velocity, velocity)
        assert len(parameters) == state.epochs + 1
        assert len(state.metrics) == state.epochs


def test_seed_and_index_and_nothing_else_decide():
    one = _train().parameters
    torch.manual_seed(99)
    before = torch.get_rng_state()
    assert torch.equal(_train().parameters, one)
    assert torch.equal(torch.get_rng_state(), before)  # the global generator is not touched
    assert not torch.equal(_train(index=3).parameters[0], one[0])
    assert not torch.equal(_train(seed=8).parameters[0], one[0])


@pytest.mark.parametrize("steps", [None, 2, 4])
@pytest.mark.parametrize("storage", ["float32", "bf16"])
@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_resumed_at_any_epoch_it_ends_in_the_same_bits(storage, momentum, steps):
    config = dataclasses.replace(CONFIG, storage=storage, momentum=momentum, steps_per_epoch=steps)
    states = _epochs(config)
    whole = _train(config)
    assert whole.parameters.dtype == (torch.bfloat16 if storage == "bf16" else torch.float32)
    for state in states:
        vector = state.vector.clone()
        resumed = _train(config, resume=state)
        assert torch.equal(resumed.parameters, whole.parameters)
        assert torch.equal(resumed.vector, whole.vector)
        assert [m["train_loss"] for m in resumed.metrics] == [
            m["train_loss"] for m in whole.metrics
        ]
        assert torch.equal(state.vector, vector)  # resuming does not spend the state


def test_fewer_epochs_are_the_beginning_of_more():
    short = _train(dataclasses.replace(CONFIG, epochs=2))
    assert torch.equal(short.parameters, _train().parameters[:3])


def test_epochs_of_as_many_steps_as_a_pass_are_passes_to_the_bit():
    steps = -(-N // CONFIG.batch)
    counted = _train(dataclasses.replace(CONFIG, steps_per_epoch=steps))
    assert torch.equal(counted.parameters, _train().parameters)


def test_epochs_of_so_many_steps_are_the_same_training_recorded_at_other_steps():
    passes = dataclasses.replace(CONFIG, augment=None, epochs=4)  # 12 steps, 3 a pass
    rows = _train(passes).parameters
    for steps, epochs in ((2, 6), (4, 3), (6, 2), (1, 12)):
        counted = _train(dataclasses.replace(passes, steps_per_epoch=steps, epochs=epochs))
        assert counted.epochs == epochs
        for epoch in range(epochs + 1):
            if epoch * steps % 3 == 0:
                assert torch.equal(counted.parameters[epoch], rows[epoch * steps // 3])


def test_metrics_of_so_many_steps_are_means_over_their_images():
    state = _train(dataclasses.replace(CONFIG, augment=None, epochs=1, steps_per_epoch=7))
    assert 0 <= state.metrics[0]["train_accuracy"] <= 100
    config = dataclasses.replace(CONFIG, steps_per_epoch=7)
    assert config.images_per_epoch(N) == 2 * N + CONFIG.batch
    with pytest.raises(SettingError, match="steps_per_epoch is 0; it must be at least 1 and"):
        ExpertConfig(steps_per_epoch=0)


def test_a_state_that_does_not_fit_is_refused():
    state = _train()
    with pytest.raises(SettingError, match=r"has 3 epochs.* this expert 2"):
        _train(dataclasses.replace(CONFIG, epochs=2), resume=state)


def test_it_learns_and_says_so():
    config = dataclasses.replace(CONFIG, epochs=8, momentum=0.9, augment=None)
    state = _train(config)
    images, labels = _data()
    assert expert_accuracy(SPEC, state.vector, images, labels, batch=16) > 95
    assert expert_accuracy(SPEC, state.parameters[0], images, labels) < 80
    first, last = state.metrics[0], state.metrics[-1]
    assert set(first) == {"epoch", "train_loss", "train_accuracy", "seconds"}
    assert (first["epoch"], last["epoch"]) == (1, 8)
    assert last["train_loss"] < first["train_loss"]
    assert 95 < last["train_accuracy"] <= 100


def test_accuracy_counts():
    images, labels = _data()
    vector = parameter_vector(SPEC.build(seed=0))
    predicted = SPEC.build(seed=0)(images).argmax(1)
    assert expert_accuracy(SPEC, vector, images, predicted, batch=7) == 100
    expected = 100 * (predicted == labels).sum().item() / N
    assert expert_accuracy(SPEC, vector, images, labels, batch=7) == pytest.approx(expected)


def test_divergence_names_the_rate_and_the_mend():
    config = dataclasses.replace(CONFIG, lr=1e20)
    with pytest.raises(
        TrajmatchError, match=r"expert 2 diverged in epoch 1 .*lr=1e\+20.* a smaller lr="
    ):
        next(expert_epochs(SPEC, *_data(), config, seed=7, index=2))


def test_bf16_gradient_is_near_and_stays_float32():
    images, labels = _data()
    vector = parameter_vector(SPEC.build(seed=0))
    exact, loss, right = gradient_step(SPEC.build(seed=1))(vector, images, labels)
    rough, rough_loss, _ = gradient_step(SPEC.build(seed=1), "bf16")(vector, images, labels)
    assert rough.dtype == rough_loss.dtype == torch.float32
    assert not torch.equal(rough, exact)  # it did run in bf16
    assert F.cosine_similarity(rough, exact, dim=0) > 0.98
    assert rough_loss == pytest.approx(loss.item(), rel=0.02)
    assert torch.equal(right, SPEC.build(seed=0)(images).argmax(1) == labels)
    assert not exact.requires_grad
    assert not vector.requires_grad


def test_a_batch_in_micro_batches_is_the_batch():
    images, labels = _data()
    vector = parameter_vector(SPEC.build(seed=0))
    whole = gradient_step(SPEC.build(seed=0))(vector, images, labels)
    # Seven at a time, the last five.
    gradient, loss, right = gradient_step(SPEC.build(seed=0), micro_batch=7)(vector, images, labels)
    assert not torch.equal(gradient, whole[0])  # summed in another order
    torch.testing.assert_close(gradient, whole[0])
    torch.testing.assert_close(loss, whole[1])
    assert right.shape == (N,)
    assert torch.equal(right, whole[2])


def test_the_gradient_by_finite_differences():
    images, labels = _data()
    module = SPEC.build(seed=0).double()
    vector, step = parameter_vector(module), gradient_step(module)
    gradient = step(vector, images.double(), labels)[0]
    direction = torch.randn(
        len(vector), generator=torch.Generator().manual_seed(3), dtype=torch.float64
    )
    ahead, behind = (
        step(vector + sign * 1e-6 * direction, images.double(), labels)[1] for sign in (1, -1)
    )
    slope = ((ahead - behind) / 2e-6).item()
    assert slope == pytest.approx((gradient @ direction).item(), rel=1e-6)


def test_update_in_place():
    vector, gradient, velocity = torch.ones(2), torch.full((2,), 0.5), torch.full((2,), 2.0)
    sgd_update(vector, gradient, velocity, lr=0.1, momentum=0.5, weight_decay=1.0)
    assert velocity.tolist() == [2.5, 2.5]  # 0.5 * 2 + (0.5 + 1)
    assert vector.tolist() == [0.75, 0.75]


def test_a_network_with_state_is_refused():
    spec = NetworkSpec("convnet", channels=1, classes=3, size=8, options={"norm": "batch"})
    with pytest.raises(SettingError, match="running statistics"):
        train_expert(spec, *_data(), CONFIG, seed=0, index=0)
