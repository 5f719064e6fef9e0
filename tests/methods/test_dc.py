"""Gradient matching: its distance by hand, its gradient by finite differences, and its networks."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import tiny
from trajmatch import cli
from trajmatch.config import DSA_STRATEGY
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import DC, DSA, Conditions, Problem, SyntheticParameters
from trajmatch.methods.dc import layer_distance
from trajmatch.networks.functional import parameter_vector, split_vector
from trajmatch.rng import stream
from trajmatch.storage import read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet
from trajmatch.unroll.schedule import Schedule

SETTINGS = {"lr_img": 0.1, "batch_real": 16, "outer_loop": 4, "inner_loop": 3, "lr_net": 0.05}
both_methods = pytest.mark.parametrize("kind", [DC, DSA], ids=["dc", "dsa"])


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def problem() -> Problem:
    return tiny.bare_problem(tiny.DoubleProblem, seed=3)


def method(kind: type[DC] = DSA, **settings: object) -> DC:
    return kind(**{**SETTINGS, **settings})


def make_parameters(dtype: torch.dtype = torch.float64) -> SyntheticParameters:
    images = torch.randn(20, 1, 8, 8, generator=stream(0, "images"), dtype=torch.float64)
    # Not in the order of the classes, which nothing may rely on.
    return SyntheticParameters.begin(images.to(dtype), torch.arange(10).repeat(2), step_size=0.01)


# -- the distance --------------------------------------------------------------------------------


def test_the_distance_by_hand() -> None:
    """A convolution of two filters of 1x1x2, a norm's scale and shift, a linear layer 2 -> 2."""
    module = nn.Sequential(nn.Conv2d(1, 2, (1, 2)), nn.GroupNorm(1, 2), nn.Linear(2, 2))
    real = torch.tensor(
        [3, 4, 1, 0, 7, 7, 5, 5, 6, 6, 1, 1, 0, 2, 9, 9], dtype=torch.float64
    )  # filters (3, 4) and (1, 0); bias; scale; shift; rows (1, 1) and (0, 2); bias
    synthetic = torch.tensor(
        [4, 3, 0, 5, -1, 2, -3, 4, 5, -6, -2, -2, 0, 1, 7, 0], dtype=torch.float64
    )
    wanted = (1 - 24 / 25) + (1 - 0) + (1 - -1) + (1 - 1)
    assert layer_distance(module, real, synthetic).item() == pytest.approx(wanted, abs=1e-5)
    # The published 1e-6 beside the norms: 5 * 5, 1 * 5, sqrt(2) * sqrt(8), 2 * 1.
    exact = 4 - 24 / 25.000001 - 0 / 5.000001 + 4 / 4.000001 - 2 / 2.000001
    assert layer_distance(module, real, synthetic).item() == pytest.approx(exact, abs=1e-14)


def test_a_row_without_gradient_is_at_distance_one_and_stays_finite() -> None:
    module = nn.Linear(3, 2, bias=False)
    real = torch.tensor([1.0, 2, 3, 0, 0, 0])
    synthetic = torch.tensor([0.0, 0, 0, 4, 5, 6], requires_grad=True)
    distance = layer_distance(module, real, synthetic)
    assert distance.item() == 2
    distance.backward()
    assert synthetic.grad is not None
    assert synthetic.grad.isfinite().all()


def plain_gradient(
    module: nn.Module, vector: torch.Tensor, images: torch.Tensor, label: int
) -> torch.Tensor:
    """By autograd, without the engine."""
    leaf = vector.clone().requires_grad_()
    logits = torch.func.functional_call(module, split_vector(module, leaf), (images,))
    loss = F.cross_entropy(logits, torch.full((len(images),), label))
    return torch.autograd.grad(loss, leaf)[0]


@both_methods
def test_images_that_are_the_real_ones_are_at_no_distance(kind: type[DC], problem: Problem) -> None:
    """But for what the published 1e-6 adds: 1e-6 / (|row|^2 + 1e-6) a row."""
    equal = SyntheticParameters.begin(problem.images, problem.labels.long(), step_size=0.01)
    found = method(kind, batch_real=10_000).estimate(problem, equal, 0)
    rest = 0.0
    if kind is DC:
        for label in range(10):
            images = problem.images[problem.labels == label]
            g = plain_gradient(problem.module, problem.state["network"], images, label)
            for part in split_vector(problem.module, g).values():
                if part.ndim > 1:
                    squares = part.flatten(1).square().sum(1)
                    rest += (1e-6 / (squares + 1e-6)).sum().item()
        assert found.loss.item() == pytest.approx(rest, rel=1e-6)
    others = equal.with_tensors({"images": problem.images.flip(0)})
    far = method(kind).estimate(problem, others, 0)
    assert 0 < found.loss.item() < 1e-2 * far.loss.item()


# -- the gradient --------------------------------------------------------------------------------


@both_methods
@pytest.mark.parametrize("micro_batch_size", [None, 5])
def test_by_finite_differences(
    kind: type[DC], micro_batch_size: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a fresh network, and at a trained one (which is no function of the images here)."""
    parameters, matching = make_parameters(), method(kind)
    problem = tiny.bare_problem(tiny.DoubleProblem, seed=3, micro_batch_size=micro_batch_size)
    for iteration in (0, 1):
        before = dict(problem.state)
        found = matching.estimate(problem, parameters, iteration)
        vector = problem.state["network"]
        direction = torch.randn(
            parameters.images.shape, generator=stream(iteration, "direction"), dtype=torch.float64
        )
        with monkeypatch.context() as patched:
            patched.setattr(kind, "_network", lambda *_, vector=vector: vector)
            slope = tiny.slope(matching, problem, parameters, direction, iteration)
        assert (found.images * direction).sum().item() == pytest.approx(slope, rel=1e-4)
        assert (found.labels, found.step_size) == (None, None)
        assert iteration == 0 or not torch.equal(before["network"], vector)


def test_the_loss_by_plain_autograd(problem: Problem) -> None:
    parameters = make_parameters()
    found = method(DC, batch_real=10_000).estimate(problem, parameters, 0)
    module = problem.fresh("distill", "gradient", "network", 0)
    vector, loss = parameter_vector(module), 0.0
    for label in range(10):
        g, h = (
            plain_gradient(module, vector, images, label)
            for images in (
                problem.images[problem.labels == label],
                parameters.images[parameters.classes == label],
            )
        )
        loss += layer_distance(module, g, h).item()
    assert found.loss.item() == pytest.approx(loss, rel=1e-9)


def test_real_and_synthetic_images_change_alike_in_dsa_and_not_at_all_in_dc(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    drawn = []
    original = Augmentation.apply

    def recorded(self: Augmentation, images: torch.Tensor, draw: object) -> torch.Tensor:
        drawn.append(draw)
        return original(self, images, draw)

    monkeypatch.setattr(Augmentation, "apply", recorded)
    problem, parameters = tiny.bare_problem(seed=3), make_parameters(torch.float32)
    method(DSA, augment="color_crop").estimate(problem, parameters, 0)
    assert len(drawn) == 20
    for real, synthetic in zip(drawn[::2], drawn[1::2], strict=True):
        assert real.name == synthetic.name
        for key, value in real.values.items():
            assert len(value) == 16
            assert len(synthetic.values[key]) == 2
            assert torch.cat([value, synthetic.values[key]]).unique().numel() == 1
    assert {draw.name for draw in drawn} == {"color", "crop"}
    drawn.clear()
    for iteration in (0, 1):
        method(DC).estimate(problem, parameters, iteration)
    assert drawn == []


# -- the networks --------------------------------------------------------------------------------


@both_methods
def test_a_network_is_trained_on_the_images_between_two_updates(
    kind: type[DC], problem: Problem
) -> None:
    matching, vectors = method(kind), []
    for iteration in range(6):
        parameters = make_parameters()
        images = parameters.images * (1 + iteration)  # as if updated
        matching.estimate(problem, parameters.with_tensors({"images": images}), iteration)
        vectors.append(problem.state["network"])
        position = iteration % 4
        if position == 0:
            fresh = problem.fresh("distill", "gradient", "network", iteration // 4)
            assert torch.equal(vectors[-1], parameter_vector(fresh))
            continue
        vector = vectors[-2]
        augment = None if kind is DC else Augmentation(DSA_STRATEGY)
        schedule = Schedule.make(
            images, steps=3, batch_syn=None, augment=augment, seed=3,
            names=("distill", "gradient", "walk", iteration),
        )  # fmt: skip
        for step in range(3):
            leaf, augmented = vector.clone().requires_grad_(), images
            if augment is not None:
                augmented = augment.apply(augmented, schedule.draws[step])
            logits = torch.func.functional_call(
                problem.module, split_vector(problem.module, leaf), (augmented,)
            )
            loss = F.cross_entropy(logits, parameters.classes)
            vector = vector - 0.05 * torch.autograd.grad(loss, leaf)[0]
        torch.testing.assert_close(vectors[-1], vector)
    assert not torch.equal(vectors[0], vectors[4])


def test_batches_of_256_where_there_are_more_images(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths = []
    original = Schedule.make

    def recorded(*arguments: object, **settings: object) -> Schedule:
        schedule = original(*arguments, **settings)
        lengths.append([len(chosen) for chosen in schedule.indices])
        return schedule

    monkeypatch.setattr(Schedule, "make", recorded)
    problem, images = tiny.bare_problem(seed=3), torch.randn(260, 1, 8, 8, generator=stream(0))
    parameters = SyntheticParameters.begin(images, torch.arange(10).repeat(26), step_size=0.01)
    for iteration in (0, 1):
        method(DC).estimate(problem, parameters, iteration)
    assert lengths == [[256, 256, 256]]


@pytest.mark.parametrize(
    ("ipc", "classes", "given", "wanted"),
    [
        (1, 10, (None, None), (1, 1)),
        (10, 10, (None, None), (10, 50)),
        (10, 100, (None, None), (10, 200)),  # four batches a pass
        (50, 10, (None, None), (50, 20)),
        (10, 10, (3, None), (3, 50)),
        (10, 10, (None, 2), (10, 2)),
        (7, 10, (3, 2), (3, 2)),
    ],
)
def test_published_loops(
    ipc: int, classes: int, given: tuple[int | None, int | None], wanted: tuple[int, int]
) -> None:
    assert DC(outer_loop=given[0], inner_loop=given[1]).loops(ipc, ipc * classes) == wanted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"outer_loop": None}, r"ipc is 2 and dsa.*1, 10, 20.*outer_loop= and inner_loop="),
        ({"augment": "none"}, r"augment is none.*method='dc'"),
    ],
)
def test_refused(settings: dict[str, object], message: str) -> None:
    conditions = Conditions(tiny.bare_problem().spec, ipc=2)
    method(DSA).check(conditions)
    with pytest.raises(SettingError, match=message):
        method(DSA, **settings).check(conditions)


# -- whole runs ----------------------------------------------------------------------------------


# From the iteration where it was interrupted, and from one before.
@pytest.mark.parametrize(("kind", "every"), [(DC, 1), (DSA, 2)])
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, kind: type[DC], every: int
) -> None:
    settings = {"iterations": 6, "ipc": 2, "eval_every": 6, "checkpoint_every": every}
    whole = tiny.distill(tmp_path / "whole", method(kind), **settings)
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(tmp_path / "parts", method(kind), stop=3, **settings)
    resumed = tiny.distill(tmp_path / "parts", method(kind), **settings)
    assert torch.equal(whole.last.images, resumed.last.images)
    files = [
        open_tensors(tmp_path / run / "checkpoint.safetensors", kind="checkpoint", version=1)
        for run in ("whole", "parts")
    ]
    assert "carried.network" in files[0].names
    for part in files[0].names:
        assert torch.equal(*(file.read(part) for file in files)), part
    assert whole.last.step_size is None
    assert whole.last.info["method"] == kind.name


@pytest.mark.parametrize("name", ["dc", "dsa"])
def test_through_the_command_line(tmp_path: Path, name: str) -> None:
    words = (
        f"distill --device cpu --method {name} --iterations 2 --batch-real 8 --eval-every 2 "
        f"--lr-img 0.1 --out {tmp_path / 'run'} {tiny.NETWORK_WORDS} {tiny.SCORE_WORDS}"
    )
    assert cli.main(words.split()) == 0
    assert read_result(tmp_path / "run")["scores"][0]["method"] == name
    assert math.isfinite(read_result(tmp_path / "run")["scores"][0]["mean"])
    assert SyntheticSet.load(tmp_path / "run" / "best").step_size is None
