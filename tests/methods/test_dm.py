"""Distribution matching: its gradient by hand and by finite differences, and the siamese draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY as EVERY_CHANGE
from trajmatch.config import DistillConfig
from trajmatch.data.augment import CHANGES, Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import Problem, SyntheticParameters, begin
from trajmatch.methods.dm import DM, mean_distance
from trajmatch.methods.dsa import alike
from trajmatch.networks.base import Network
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.synthetic import SyntheticSet

CONFIG = DistillConfig(
    method="dm", iterations=3, ipc=2, lr_img=0.5, batch_real=16, eval_every=3, checkpoint_every=1
)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def matching(ground: Problem, seed: int = 3, **settings: object) -> DM:
    method = begin(ground, dataclasses.replace(CONFIG, **settings), seed=seed)
    assert isinstance(method, DM)
    return method


def learned(dtype: torch.dtype = torch.float64) -> SyntheticParameters:
    images = torch.randn(20, 1, 8, 8, generator=stream(0, "images"), dtype=torch.float64)
    # Not in the order of the classes, which nothing may rely on.
    return SyntheticParameters.begin(images.to(dtype), torch.arange(10).repeat(2), step_size=0.01)


# -- the gradient --------------------------------------------------------------------------------


class Linear(Network):
    """An embedding that is a matrix."""

    def __init__(self, matrix: torch.Tensor) -> None:
        super().__init__(channels=1, classes=10, size=8, options={})
        self.matrix = matrix

    def describe(self) -> str:
        return "a matrix"

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1) @ self.matrix.T


class LinearProblem(tiny.DoubleProblem):
    """The digits below a linear embedding, another for every name."""

    def fresh(self, seed: int, *names: str | int) -> Network:
        return Linear(torch.randn(5, 64, generator=stream(seed, *names), dtype=torch.float64))


def test_of_a_linear_embedding_it_is_the_closed_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of ||A (m_c - s_c)||^2, with m_c the mean of a class and s_c that of its n images, the
    gradient to each of these is -2/n A^T A (m_c - s_c)."""
    monkeypatch.setattr("trajmatch.methods.dm.micro_batch_size", lambda *_: 50)
    ground, made = tiny.bare_ground(LinearProblem), learned()
    method = matching(ground, batch_real=10_000, augment="none")
    for iteration in (0, 5):
        found = method.estimate(made, iteration)
        network = ground.fresh(3, "distill", "dm", iteration)
        assert isinstance(network, Linear)
        matrix = network.matrix
        loss = torch.zeros((), dtype=torch.float64)
        for label in range(10):
            mean = ground.images[ground.labels == label].flatten(1).mean(0)
            mine = made.images[made.classes == label].flatten(1)
            apart = matrix @ (mean - mine.mean(0))
            loss += apart.square().sum()
            wanted = (-2 / 2 * matrix.T @ apart).view(1, 1, 8, 8).expand(2, -1, -1, -1)
            torch.testing.assert_close(found.images[made.classes == label], wanted)
        torch.testing.assert_close(found.loss, loss)
        assert (found.labels, found.step_size) == (None, None)


@pytest.mark.parametrize("augment", ["none", EVERY_CHANGE])
def test_by_finite_differences(augment: str) -> None:
    made = learned()
    method = matching(tiny.bare_ground(tiny.DoubleProblem), augment=augment)
    for iteration in range(4):  # several changes
        found = method.estimate(made, iteration)
        way = torch.randn(
            made.images.shape, generator=stream(iteration, "way"), dtype=torch.float64
        )
        losses = [
            method.estimate(made.with_tensors({"images": made.images + h * way}), iteration).loss
            for h in (1e-6, -1e-6)
        ]
        slope = (losses[0] - losses[1]).item() / 2e-6
        assert (found.images * way).sum().item() == pytest.approx(slope, rel=1e-5)


def test_images_that_are_the_real_ones_are_at_no_distance() -> None:
    network = tiny.bare_ground(tiny.DoubleProblem).fresh(0)
    images = learned().images
    assert mean_distance(network.embed, images, images, piece=7).item() < 1e-24
    assert mean_distance(network.embed, images, -images).item() > 1e-3


def test_every_iteration_has_a_network_images_and_a_change_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = tiny.bare_ground()
    method, made = matching(ground), learned(torch.float32)
    seen: list[torch.Tensor] = []
    original = ground.of_class

    def watched(self: Problem, *arguments: object) -> torch.Tensor:
        seen.append(original(*arguments))
        return seen[-1]

    monkeypatch.setattr(Problem, "of_class", watched)
    estimates = [method.estimate(made, iteration) for iteration in (0, 1, 0)]
    assert {len(images) for images in seen} == {16}
    assert torch.equal(seen[0], seen[20])
    assert not torch.equal(seen[0], seen[10])
    assert torch.equal(estimates[0].images, estimates[2].images)
    assert not torch.equal(estimates[0].images, estimates[1].images)
    other = matching(ground, seed=4).estimate(made, 0)
    assert not torch.equal(estimates[0].images, other.images)


def test_bf16_is_near_and_the_images_stay_float32() -> None:
    made = learned(torch.float32)
    plain = matching(tiny.bare_ground()).estimate(made, 0)
    rounded = matching(tiny.bare_ground(), precision="bf16").estimate(made, 0)
    assert rounded.images.dtype == rounded.loss.dtype == torch.float32
    apart = (plain.images - rounded.images).norm() / plain.images.norm()
    assert 1e-4 < apart < 0.2


def test_soft_labels_are_refused() -> None:
    with pytest.raises(SettingError, match=r"not learned by dm.*--method mtt"):
        matching(tiny.bare_ground(), soft_labels=True)


# -- siamese -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_both_sides_are_changed_alike(change: str) -> None:
    """An image that stands on both sides, at whichever place, comes out as one image."""
    real = torch.randn(7, 3, 9, 8, generator=stream(1, "real"), dtype=torch.float64)
    synthetic = real[[5, 2]]
    for number in range(5):
        draw = stream(number, "draw")
        one, other = alike(Augmentation(change), draw, real, synthetic)
        assert torch.equal(one[[5, 2]], other)
        again, _ = alike(Augmentation(change), stream(number, "draw"), real, synthetic)
        assert torch.equal(one, again)
    if change != "flip":  # which one draw in two leaves as it is
        assert not torch.equal(one, real)


def test_without_a_change_both_stay_as_they_are() -> None:
    images = torch.randn(3, 1, 4, 4)
    assert alike(None, stream(0), images, images) == (images, images)


# -- the whole way -------------------------------------------------------------------------------


def test_through_the_pipeline(tmp_path: Path) -> None:
    outcome = pipeline.distill(
        tiny.digits(), None, tmp_path, config=CONFIG, evaluation=tiny.EVALUATE, network=tiny.NETWORK
    )
    assert outcome.last.step_size is None
    assert outcome.last.info["method"] == "dm"
    assert outcome.last.images.shape == (20, 1, 8, 8)
    first = pipeline.initial_images(tiny.digits(), outcome.last.whitening, CONFIG, seed=0).images
    assert (outcome.last.images - first).abs().max() > 1e-3


def test_through_the_command_line(tmp_path: Path) -> None:
    words = (
        "distill --device cpu --method dm --iterations 2 --batch-real 8 --eval-every 2 "
        f"--lr-img 1 --out {tmp_path / 'run'} {tiny.NETWORK_WORDS} {tiny.JUDGE_WORDS}"
    )
    assert cli.main(words.split()) == 0
    assert read_result(tmp_path / "run")["scores"][0]["method"] == "dm"
    assert SyntheticSet.load(tmp_path / "run" / "best").step_size is None
