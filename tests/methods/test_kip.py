"""Kernel inducing points: the loss against numpy, its gradient, and the way through a run."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pytest
import torch

import tiny
from trajmatch import cli, pipeline
from trajmatch.config import DistillConfig, NetworkConfig
from trajmatch.data.whiten import fit_whitening
from trajmatch.errors import SettingError
from trajmatch.methods import KIP, Problem, SyntheticParameters
from trajmatch.methods.kip import kip as inducing_file
from trajmatch.methods.kip.kip import kernel_for
from trajmatch.methods.kip.ntk import Convolutional, Dense
from trajmatch.pipeline.checks import network_for
from trajmatch.rng import stream
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

CONFIG = DistillConfig(
    method="kip", iterations=6, lr_img=1.0, batch_real=40, augment=None, eval_every=3,
    checkpoint_every=1, eval_networks=1,
)  # fmt: skip
both_kernels = pytest.mark.parametrize("network", ["mlp", "convnet"])
with_labels = pytest.mark.parametrize("soft", [None, 10], ids=["hard", "soft"])


@functools.cache
def ground(network: str = "convnet") -> Problem:
    """Without experts."""
    data = tiny.digits()
    width = NetworkConfig(network=network, width=4)
    whitening = fit_whitening("normalize", data.train)
    return Problem(data, network_for(data, width), whitening, torch.device("cpu"))


def method(network: str = "convnet", *, seed: int = 0, **settings: object) -> KIP:
    return KIP(ground(network), dataclasses.replace(CONFIG, **settings), seed=seed)


def make_learned(
    soft: int | None = None, dtype: torch.dtype = torch.float64
) -> SyntheticParameters:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(20, 1, 8, 8, generator=generator, dtype=dtype)
    learned = SyntheticParameters.begin(
        images, torch.arange(10).repeat(2), step_size=0.01, soft=soft
    )
    if learned.label_logits is None:
        return learned
    logits = learned.label_logits + torch.randn(20, 10, generator=generator, dtype=dtype)
    return dataclasses.replace(learned, label_logits=logits)


# -- the loss ------------------------------------------------------------------------------------


@both_kernels
@with_labels
def test_the_loss_is_ridge_regressions(network: str, soft: int | None) -> None:
    """Written out with numpy, but for the kernel."""
    learned, kip = make_learned(soft), method(network)
    real, labels = ground(network).batch(40, stream(0, "distill", "real", 5))
    k_ss, k_ts = (kip.kernel.ntk(x, learned.images).numpy() for x in (learned.images, real))
    y_s = np.eye(10)[learned.classes.numpy()] if soft is None else learned.labels.numpy()
    regularized = k_ss + 1e-6 * np.trace(k_ss) / 20 * np.eye(20)
    said = k_ts @ np.linalg.inv(regularized) @ (y_s - 0.1)
    errors = np.eye(10)[labels.numpy()] - 0.1 - said
    wanted = 0.5 * (errors**2).sum(1).mean()
    assert kip.estimate(learned, 5).loss.item() == pytest.approx(wanted, rel=1e-8)


@both_kernels
@with_labels
def test_gradients_by_finite_differences(network: str, soft: int | None) -> None:
    """Along random directions, single pixels and logits; some images are ones of the batch, where
    the kernel has the tip of a cone, as at the start of a run from real images."""
    kip, learned = method(network), make_learned(soft)
    real, _ = ground(network).batch(40, stream(0, "distill", "real", 3))
    mixed = torch.cat([real[:5].double(), learned.images[5:]])
    learned = dataclasses.replace(learned, images=mixed)
    found = kip.estimate(learned, 3).of(learned)
    assert set(found) == ({"images"} if soft is None else {"images", "label_logits"})
    generator = torch.Generator().manual_seed(1)
    h = 1e-5
    for name, slope in found.items():
        at = learned.tensors()[name]
        assert slope.abs().max() > 1e-4
        directions = [torch.randn(at.shape, generator=generator, dtype=at.dtype) for _ in range(4)]
        for index in (0, len(at[0].flatten()) + 1, at.numel() - 3):
            directions.append(torch.zeros_like(at))
            directions[-1].view(-1)[index] = 1
        for direction in directions:
            sides = [
                kip.estimate(learned.with_tensors({**learned.tensors(), name: moved}), 3).loss
                for moved in (at + h * direction, at - h * direction)
            ]
            by_hand = (sides[0] - sides[1]).item() / (2 * h)
            along = (slope * direction).sum().item()
            assert along == pytest.approx(by_hand, rel=1e-3, abs=1e-5)


@with_labels
def test_pieces_change_nothing(soft: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    learned = make_learned(soft)
    whole = method().estimate(learned, 0)
    monkeypatch.setattr(inducing_file, "PIECE_NUMBERS", 7 * 20 * 64)
    assert method()._piece(learned) == 7
    parts = method().estimate(learned, 0)
    torch.testing.assert_close(parts.loss, whole.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(parts.images, whole.images, rtol=1e-9, atol=1e-14)
    if soft:
        torch.testing.assert_close(parts.labels, whole.labels, rtol=1e-9, atol=1e-14)


def test_float32_images_are_learned_by_float64_arithmetic() -> None:
    learned = make_learned(10, torch.float32)
    found = method().estimate(learned, 0)
    exact = {name: part.double() for name, part in learned.tensors().items()}
    wanted = method().estimate(learned.with_tensors(exact), 0)
    assert {part.dtype for part in (found.loss, found.images, found.labels)} == {torch.float32}
    torch.testing.assert_close(found.images.double(), wanted.images, rtol=1e-5, atol=1e-7)


# -- what is drawn -------------------------------------------------------------------------------


def test_an_estimate_depends_on_its_arguments_alone() -> None:
    learned, one, other = make_learned(), method(augment="color_crop"), method(augment="color_crop")
    first = [one.estimate(learned, iteration) for iteration in (0, 1)]
    again = [other.estimate(learned, iteration) for iteration in (1, 0)][::-1]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.loss, b.loss)
    assert not torch.equal(first[0].images, first[1].images)
    elsewhere = method(seed=1, augment="color_crop").estimate(learned, 0)
    assert not torch.equal(first[0].images, elsewhere.images)


def test_real_images_are_as_many_as_asked_for_and_augmented_if_asked_for() -> None:
    plain, targets = method(batch_real=7)._batch(2)
    assert plain.shape == (7, 1, 8, 8)
    assert targets.sum(1).abs().max() < 1e-12
    flipped, same = method(batch_real=7, augment="flip")._batch(2)
    assert torch.equal(targets, same)
    turned = [torch.equal(a, b.flip(2)) for a, b in zip(plain, flipped, strict=True)]
    kept = [torch.equal(a, b) for a, b in zip(plain, flipped, strict=True)]
    assert all(a or b for a, b in zip(turned, kept, strict=True))
    assert any(turned)


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


def test_the_kernel_is_written_down() -> None:
    assert method().decisions == {"kernel": "NTK of 2 convolutions"}
    assert method(ipc=26).decisions == {"kernel": "NTK of 3 dense layers"}


# -- through a run -------------------------------------------------------------------------------


def distill(out: Path, **changes: object) -> pipeline.Outcome:
    return pipeline.distill(
        tiny.digits(),
        None,
        out,
        config=dataclasses.replace(CONFIG, **changes),
        evaluation=tiny.EVALUATE,
        network=tiny.NETWORK,
    )


def test_the_loss_falls(tmp_path: Path) -> None:
    outcome = distill(tmp_path / "run", iterations=16, lr_img=30.0, batch_real=100, eval_every=16)
    losses = [line["loss"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line]
    assert len(losses) == 16
    assert np.mean(losses[-4:]) < 0.75 * np.mean(losses[:2])
    assert outcome.last.info["method"] == "kip"
    assert outcome.last.step_size is None


@pytest.mark.parametrize("soft_labels", [False, True])
def test_it_goes_on_to_the_same_bits(tmp_path: Path, soft_labels: bool) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    settings = {"soft_labels": soft_labels, "augment": "crop_flip", "ema": 0.5}
    distill(whole, **settings)
    distill(parts, **settings, iterations=3)
    distill(parts, **settings)
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
        f" --soft-labels --whitening normalize {tiny.NETWORK_WORDS} {tiny.JUDGE_WORDS}"
    )
    assert cli.main([*words.split(), "--out", str(tmp_path / "run")]) == 0
    scores = read_result(tmp_path / "run")["scores"]
    assert [score["method"] for score in scores][:2] == ["kip", "random"]
    made = SyntheticSet.load(tmp_path / "run" / "best")
    assert made.labels.shape == (10, 10)
    torch.testing.assert_close(made.labels.sum(1), torch.ones(10))


def test_images_that_left_all_bounds_are_told() -> None:
    learned = make_learned()
    beyond = dataclasses.replace(learned, images=1e200 * learned.images)
    with pytest.raises(SettingError, match=r"cannot be inverted .*lower --lr-img"):
        method().estimate(beyond, 0)
