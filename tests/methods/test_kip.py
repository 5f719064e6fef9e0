"""Kernel inducing points: the loss against numpy, its gradient, and whole runs."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from trajmatch import cli
from trajmatch.config import NetworkConfig
from trajmatch.errors import SettingError
from trajmatch.methods import KIP, Conditions, Outcome, Problem, SyntheticParameters
from trajmatch.methods.kip.kip import kernel_for
from trajmatch.methods.kip.ntk import Convolutional, Dense, Regression
from trajmatch.networks.spec import network_for
from trajmatch.rng import stream
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

METHOD = KIP(lr_img=1.0, batch_real=40, augment=None)
both_kernels = pytest.mark.parametrize("network", ["mlp", "convnet"])
with_labels = pytest.mark.parametrize("soft", [None, 10], ids=["hard", "soft"])


def kip(**settings: object) -> KIP:
    return dataclasses.replace(METHOD, **settings)


def make_problem(network: str = "convnet", **settings: object) -> Problem:
    return tiny.bare_problem(network=NetworkConfig(network=network, width=4), **settings)


def make_parameters(
    soft: int | None = None, dtype: torch.dtype = torch.float64
) -> SyntheticParameters:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 1, 8, 8, generator=generator, dtype=dtype)
    parameters = SyntheticParameters.begin(
        images, torch.arange(10).repeat(2), step_size=0.01, soft=soft
    )
    if parameters.label_logits is None:
        return parameters
    logits = parameters.label_logits + torch.randn(20, 10, generator=generator, dtype=dtype)
    return dataclasses.replace(parameters, label_logits=logits)


# -- the loss ------------------------------------------------------------------------------------


@both_kernels
@with_labels
def test_the_loss_is_ridge_regressions(network: str, soft: int | None) -> None:
    """Written out with numpy, but for the kernel."""
    parameters, problem = make_parameters(soft), make_problem(network)
    real, labels = problem.batch(40, stream(0, "distill", "real", 5))
    kernel = kernel_for(problem.spec, 20)
    k_ss, k_ts = (kernel.ntk(x, parameters.images).numpy() for x in (parameters.images, real))
    y_s = np.eye(10)[parameters.classes.numpy()] if soft is None else parameters.labels.numpy()
    regularized = k_ss + 1e-6 * np.trace(k_ss) / 20 * np.eye(20)
    predicted = k_ts @ np.linalg.inv(regularized) @ (y_s - 0.1)
    errors = np.eye(10)[labels.numpy()] - 0.1 - predicted
    wanted = 0.5 * (errors**2).sum(1).mean()
    assert METHOD.estimate(problem, parameters, 5).loss.item() == pytest.approx(wanted, rel=1e-8)


@both_kernels
@with_labels
def test_gradients_by_finite_differences(network: str, soft: int | None) -> None:
    """Along random directions, single pixels and logits; some images are ones of the batch, where
    the kernel has the tip of a cone, as at the start of a run from real images."""
    problem, parameters = make_problem(network), make_parameters(soft)
    real, _ = problem.batch(40, stream(0, "distill", "real", 3))
    mixed = torch.cat([real[:5].double(), parameters.images[5:]])
    parameters = dataclasses.replace(parameters, images=mixed)
    found = METHOD.estimate(problem, parameters, 3).of(parameters)
    assert set(found) == ({"images"} if soft is None else {"images", "label_logits"})
    generator = torch.Generator().manual_seed(1)
    h = 1e-5
    for name, slope in found.items():
        at = parameters.tensors()[name]
        assert slope.abs().max() > 1e-4
        directions = [torch.randn(at.shape, generator=generator, dtype=at.dtype) for _ in range(4)]
        for index in (0, len(at[0].flatten()) + 1, at.numel() - 3):
            directions.append(torch.zeros_like(at))
            directions[-1].view(-1)[index] = 1
        for direction in directions:
            both = [
                METHOD.estimate(
                    problem, parameters.with_tensors({**parameters.tensors(), name: moved}), 3
                ).loss
                for moved in (at + h * direction, at - h * direction)
            ]
            by_hand = (both[0] - both[1]).item() / (2 * h)
            along = (slope * direction).sum().item()
            assert along == pytest.approx(by_hand, rel=1e-3, abs=1e-5)


@with_labels
def test_parts_of_the_real_batch_change_nothing(
    soft: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters, problem = make_parameters(soft), make_problem()
    whole = METHOD.estimate(problem, parameters, 0)
    lengths = []
    predict = Regression.predict

    def recorded(self: Regression, images: torch.Tensor) -> torch.Tensor:
        lengths.append(len(images))
        return predict(self, images)

    monkeypatch.setattr(Regression, "predict", recorded)
    parts = kip(numbers_at_a_time=7 * 20 * 64).estimate(problem, parameters, 0)
    assert lengths == [7, 7, 7, 7, 7, 5]
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-9, atol=1e-14)
    if soft:
        torch.testing.assert_close(parts.labels, whole.labels, rtol=1e-9, atol=1e-14)


def test_float32_images_are_learned_by_float64_arithmetic() -> None:
    parameters, problem = make_parameters(10, torch.float32), make_problem()
    found = METHOD.estimate(problem, parameters, 0)
    exact = {name: part.double() for name, part in parameters.tensors().items()}
    wanted = METHOD.estimate(problem, parameters.with_tensors(exact), 0)
    assert {part.dtype for part in (found.loss, found.images, found.labels)} == {torch.float32}
    torch.testing.assert_close(found.images.double(), wanted.images, rtol=1e-5, atol=1e-7)


# -- what is drawn -------------------------------------------------------------------------------


def test_an_estimate_depends_on_its_arguments_alone() -> None:
    parameters, method = make_parameters(), kip(augment="color_crop")
    one, other = make_problem(), make_problem()
    first = [method.estimate(one, parameters, iteration) for iteration in (0, 1)]
    again = [method.estimate(other, parameters, iteration) for iteration in (1, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.loss, b.loss)
    assert not torch.equal(first[0].images, first[1].images)
    elsewhere = method.estimate(make_problem(seed=1), parameters, 0)
    assert not torch.equal(first[0].images, elsewhere.images)


def test_real_images_are_as_many_as_set_and_augmented_if_set() -> None:
    problem = make_problem()
    plain, targets = kip(batch_real=7)._batch(problem, 2)
    assert plain.shape == (7, 1, 8, 8)
    assert targets.sum(1).abs().max() < 1e-12
    flipped, same = kip(batch_real=7, augment="flip")._batch(problem, 2)
    assert torch.equal(targets, same)
    mirrored = [torch.equal(a, b.flip(2)) for a, b in zip(plain, flipped, strict=True)]
    unchanged = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert all(a or b for a, b in zip(mirrored, unchanged, strict=True))
    assert any(mirrored)


@pytest.mark.parametrize(
    ("network", "count", "kernel"),
    [
        (NetworkConfig(), 10, Convolutional(2)),
        (NetworkConfig(depth=3), 256, Convolutional(3)),
        (NetworkConfig(), 257, Dense(3)),  # 257 * 257 * 64 numbers are more than 2^22
        (NetworkConfig(network="mlp"), 10, Dense(2)),
        (NetworkConfig(network="vit"), 10, Dense(3)),
    ],
)
def test_the_kernel_stands_for_the_network(
    network: NetworkConfig, count: int, kernel: object
) -> None:
    assert kernel_for(network_for(tiny.digits(), network), count) == kernel


def test_the_kernel_is_recorded_and_is_that_of_so_many_images() -> None:
    problem, parameters = make_problem(), make_parameters()
    METHOD.estimate(problem, parameters, 0)
    assert problem.resolved == {"kernel": "NTK of 2 convolutions"}
    many = SyntheticParameters.begin(
        torch.randn(260, 1, 8, 8, generator=stream(0)), torch.arange(10).repeat(26), step_size=0.01
    )
    kip(batch_real=2).estimate(problem, many, 0)
    assert problem.resolved == {"kernel": "NTK of 3 dense layers"}


# -- whole runs ----------------------------------------------------------------------------------


def distill(out: Path, method: KIP, **settings: object) -> Outcome:
    return tiny.distill(out, method, **{"eval_every": 3, "eval_networks": 1, **settings})


def test_the_loss_falls(tmp_path: Path) -> None:
    method = kip(lr_img=30.0, batch_real=100)
    outcome = distill(tmp_path / "run", method, iterations=16, eval_every=16)
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.75 * np.mean(losses[:2])
    assert outcome.last.info["method"] == "kip"
    assert outcome.last.step_size is None


@pytest.mark.parametrize("soft_labels", [False, True])
def test_more_iterations_continue_to_the_same_bits(tmp_path: Path, soft_labels: bool) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    method = kip(soft_labels=soft_labels, augment="crop_flip")
    distill(whole, method, ema=0.5, iterations=6)
    distill(parts, method, ema=0.5, iterations=3)
    distill(parts, method, ema=0.5, iterations=6)
    one, two = (
        open_tensors(out / "checkpoint.safetensors", kind="checkpoint", version=1)
        for out in (whole, parts)
    )
    assert ("learned.label_logits" in one.names) == soft_labels
    for name in one.names:
        assert torch.equal(one.read(name), two.read(name)), name
    for name in ("best", "last"):
        first, second = SyntheticSet.load(whole / name), SyntheticSet.load(parts / name)
        assert torch.equal(first.images, second.images)
        assert torch.equal(first.labels, second.labels)


def test_the_command_needs_no_experts(tmp_path: Path) -> None:
    words = (
        "distill --device cpu --method kip --iterations 2 --eval-every 2 --lr-img 1 --batch-real 20"
        f" --soft-labels --whitening normalize {tiny.NETWORK_WORDS} {tiny.SCORE_WORDS}"
    )
    assert cli.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    scores = read_result(tmp_path / "run")["scores"]
    assert [score["method"] for score in scores][:2] == ["kip", "random"]
    distilled = SyntheticSet.load(tmp_path / "run" / "best")
    assert distilled.labels.shape == (10, 10)
    torch.testing.assert_close(distilled.labels.sum(1), torch.ones(10))


def test_images_that_left_all_bounds_are_reported() -> None:
    parameters = make_parameters()
    beyond = dataclasses.replace(parameters, images=1e200 * parameters.images)
    with pytest.raises(SettingError, match=r"cannot be inverted .*lower lr_img="):
        METHOD.estimate(make_problem(), beyond, 0)


def test_experts_labels_without_experts_are_refused() -> None:
    method = kip(soft_labels=True, init_labels="experts")
    spec = make_problem().spec
    method.check(Conditions(spec, ipc=2, expert_epochs=3))
    with pytest.raises(SettingError, match=r"init_labels is experts and kip has none"):
        method.check(Conditions(spec, ipc=2))
