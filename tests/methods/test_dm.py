"""Distribution matching: its gradient by hand and by finite differences, and the siamese draw."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY
from trajmatch.data.augment import CHANGES, Augmentation
from trajmatch.methods import DM, Problem, SyntheticParameters
from trajmatch.methods.dm import mean_distance
from trajmatch.methods.dsa import augment_both
from trajmatch.networks.base import Network
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.synthetic import SyntheticSet

METHOD = DM(lr_img=0.5, batch_real=16)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def make_parameters(dtype: torch.dtype = torch.float64) -> SyntheticParameters:
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

    def fresh(self, *names: str | int) -> Network:
        return Linear(torch.randn(5, 64, generator=stream(self.seed, *names), dtype=torch.float64))


def test_of_a_linear_embedding_it_is_the_closed_form() -> None:
    """Of ||A (m_c - s_c)||^2, with m_c the mean of a class and s_c that of its n images, the
    gradient to each of these is -2/n A^T A (m_c - s_c)."""
    problem = tiny.bare_problem(LinearProblem, seed=3, micro_batch_size=50)
    parameters, method = make_parameters(), DM(batch_real=10_000, augment="none")
    for iteration in (0, 5):
        found = method.estimate(problem, parameters, iteration)
        network = problem.fresh("distill", "dm", iteration)
        assert isinstance(network, Linear)
        matrix = network.matrix
        loss = torch.zeros((), dtype=torch.float64)
        for label in range(10):
            mean = problem.images[problem.labels == label].flatten(1).mean(0)
            own = parameters.images[parameters.classes == label].flatten(1)
            apart = matrix @ (mean - own.mean(0))
            loss += apart.square().sum()
            wanted = (-2 / 2 * matrix.T @ apart).view(1, 1, 8, 8).expand(2, -1, -1, -1)
            torch.testing.assert_close(found.images[parameters.classes == label], wanted)
        torch.testing.assert_close(found.loss, loss)
        assert (found.labels, found.step_size) == (None, None)


@pytest.mark.parametrize("augment", ["none", DSA_STRATEGY])
def test_by_finite_differences(augment: str) -> None:
    parameters, method = make_parameters(), DM(batch_real=16, augment=augment)
    problem = tiny.bare_problem(tiny.DoubleProblem, seed=3)
    for iteration in range(4):  # several changes
        found = method.estimate(problem, parameters, iteration)
        direction = torch.randn(
            parameters.images.shape, generator=stream(iteration, "direction"), dtype=torch.float64
        )
        slope = tiny.slope(method, problem, parameters, direction, iteration)
        assert (found.images * direction).sum().item() == pytest.approx(slope, rel=1e-5)


def test_images_that_are_the_real_ones_are_at_no_distance() -> None:
    network = tiny.bare_problem(tiny.DoubleProblem).fresh(0)
    images = make_parameters().images
    assert mean_distance(network.embed, images, images, micro_batch=7).item() < 1e-24
    assert mean_distance(network.embed, images, -images).item() > 1e-3


def test_every_iteration_has_a_network_images_and_a_change_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    problem, parameters = tiny.bare_problem(seed=3), make_parameters(torch.float32)
    drawn: list[torch.Tensor] = []
    original = problem.of_class

    def recorded(self: Problem, *arguments: object) -> torch.Tensor:
        drawn.append(original(*arguments))
        return drawn[-1]

    monkeypatch.setattr(Problem, "of_class", recorded)
    estimates = [METHOD.estimate(problem, parameters, iteration) for iteration in (0, 1, 0)]
    assert {len(images) for images in drawn} == {16}
    assert torch.equal(drawn[0], drawn[20])
    assert not torch.equal(drawn[0], drawn[10])
    assert torch.equal(estimates[0].images, estimates[2].images)
    assert not torch.equal(estimates[0].images, estimates[1].images)
    other = METHOD.estimate(tiny.bare_problem(seed=4), parameters, 0)
    assert not torch.equal(estimates[0].images, other.images)


def test_bf16_is_near_and_the_images_stay_float32() -> None:
    parameters = make_parameters(torch.float32)
    plain = METHOD.estimate(tiny.bare_problem(seed=3), parameters, 0)
    rounded = METHOD.estimate(tiny.bare_problem(seed=3, precision="bf16"), parameters, 0)
    assert rounded.images.dtype == rounded.loss.dtype == torch.float32
    apart = (plain.images - rounded.images).norm() / plain.images.norm()
    assert 1e-4 < apart < 0.2


# -- siamese -------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_real_and_synthetic_images_change_alike(change: str) -> None:
    """An image that is in both sets, at any place, is changed to the same image."""
    real = torch.randn(7, 3, 9, 8, generator=stream(1, "real"), dtype=torch.float64)
    synthetic = real[[5, 2]]
    for number in range(5):
        draw = stream(number, "draw")
        one, other = augment_both(Augmentation(change), draw, real, synthetic)
        assert torch.equal(one[[5, 2]], other)
        again, _ = augment_both(Augmentation(change), stream(number, "draw"), real, synthetic)
        assert torch.equal(one, again)
    if change != "flip":  # which one draw in two leaves as it is
        assert not torch.equal(one, real)


def test_without_a_change_both_stay_as_they_are() -> None:
    images = torch.randn(3, 1, 4, 4)
    assert augment_both(None, stream(0), images, images) == (images, images)


# -- whole runs ----------------------------------------------------------------------------------


def test_through_the_pipeline(tmp_path: Path) -> None:
    outcome = tiny.distill(tmp_path, METHOD, iterations=3, ipc=2, eval_every=3)
    assert outcome.last.step_size is None
    assert outcome.last.info["method"] == "dm"
    assert outcome.last.images.shape == (20, 1, 8, 8)
    first = pipeline.initial_parameters(
        tiny.digits(),
        outcome.last.whitening,
        METHOD,
        dataclasses.replace(tiny.DISTILL, ipc=2),
        seed=0,
    )
    assert (outcome.last.images - first.images).abs().max() > 1e-3


def test_through_the_command_line(tmp_path: Path) -> None:
    words = (
        "distill --device cpu --method dm --iterations 2 --batch-real 8 --eval-every 2 "
        f"--lr-img 1 --out {tmp_path / 'run'} {tiny.NETWORK_WORDS} {tiny.SCORE_WORDS}"
    )
    assert cli.main(words.split()) == 0
    assert read_result(tmp_path / "run")["scores"][0]["method"] == "dm"
    assert SyntheticSet.load(tmp_path / "run" / "best").step_size is None
