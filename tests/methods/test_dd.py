"""DD and LD: the gradient of the loss on real images after an unroll from a fresh network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tiny
from reference import plain_loss, plain_unroll
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import DD, LD, Estimate, Method, Problem, SyntheticParameters
from trajmatch.methods.parameters import mean_estimate
from trajmatch.networks.functional import parameter_vector
from trajmatch.rng import stream
from trajmatch.storage import read_log
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Tensor
from trajmatch.unroll import Schedule

METHOD = DD(
    syn_steps=3, batch_real=32, augment=DSA_STRATEGY, lr_img=10.0, lr_lr=1e-6, step_size=0.01
)
LABELS = LD(
    syn_steps=3, batch_real=32, augment=DSA_STRATEGY, segments=2, lr_lr=1e-4, lr_label=100.0
)
SEED = 4


def dd(**settings: object) -> DD:
    return dataclasses.replace(METHOD, **settings)


@pytest.fixture
def problem() -> Problem:
    """The digits and a smooth network, whose finite differences cross no kink."""
    bare = tiny.bare_problem(seed=SEED)
    options = {**bare.spec.options, "activation": "sigmoid"}
    return dataclasses.replace(bare, spec=dataclasses.replace(bare.spec, options=options))


def make_parameters(*, soft: bool = True) -> SyntheticParameters:
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(10, 1, 8, 8, generator=draw, dtype=torch.float64)
    begun = SyntheticParameters.begin(
        images, torch.arange(10), step_size=0.4, soft=10 if soft else None
    )
    if begun.label_logits is None:
        return begun
    away = torch.randn(10, 10, generator=draw, dtype=torch.float64)
    return begun.with_tensors({**begun.tensors(), "label_logits": begun.label_logits + away})


def close(found: Tensor | None, wanted: Tensor, rel: float = 1e-9) -> None:
    assert found is not None
    assert found.shape == wanted.shape
    assert wanted.norm() > 0
    assert (found - wanted).norm() <= rel * wanted.norm()


def by_hand(
    method: DD, problem: Problem, parameters: SyntheticParameters, iteration: int, number: int = 0
) -> Estimate:
    """By plain back-propagation through the whole unroll, or its last `bptt_steps`."""
    place = (iteration, number)
    augment = Augmentation(str(method.augment))
    steps = method.steps(problem, *place)
    schedule = Schedule.make(
        parameters.images, steps=steps, batch_syn=method.batch_syn, augment=augment, seed=SEED,
        names=("distill", "walk", *place),
    )  # fmt: skip
    first = 0 if method.bptt_steps is None else steps - method.bptt_steps
    network = problem.fresh("distill", "network", *place)
    vector = parameter_vector(network).double()
    labels = parameters.labels
    if first:
        early = Schedule(first, draws=schedule.draws[:first])
        given = (parameters.images, labels, parameters.step_size)
        vector = plain_unroll(network, vector, *given, early, augment).detach()
    late = Schedule(
        steps - first,
        None if schedule.indices is None else schedule.indices[first:],
        schedule.draws[first:],
    )
    leaves = [parameters.images.clone().requires_grad_(), parameters.step_size.requires_grad_()]
    if labels.is_floating_point():
        labels = labels.clone().requires_grad_()
        leaves.append(labels)
    end = plain_unroll(network, vector, leaves[0], labels, leaves[1], late, augment)
    loss = plain_loss(network, end, *real_batch(method, problem, *place))
    images, step_size, *soft = torch.autograd.grad(loss, leaves)
    return Estimate(loss.detach(), images, soft[0] if soft else None, step_size)


def real_batch(method: DD, problem: Problem, iteration: int, number: int) -> tuple[Tensor, Tensor]:
    draw = stream(SEED, "distill", "real", iteration, number)
    images, labels = problem.batch(method.batch_real, draw)
    return images.double(), labels


# -- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["reverse", "stored"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "settings",
    [{}, {"batch_syn": 4}, {"bptt_steps": 1, "syn_steps": 4}],
    ids=["all", "few", "truncated"],
)
def test_an_estimate_is_plain_backpropagation(
    problem: Problem, settings: dict[str, int], soft: bool, gradient: str
) -> None:
    method, parameters = dd(**settings, gradient=gradient), make_parameters(soft=soft)
    for iteration in (0, 1, 7):
        found = method.estimate(problem, parameters, iteration)
        wanted = by_hand(method, problem, parameters, iteration)
        close(found.loss, wanted.loss)
        close(found.images, wanted.images)
        close(found.step_size, wanted.step_size)
        if wanted.labels is None:
            assert found.labels is None
        else:
            close(found.labels, wanted.labels)


def test_an_estimate_is_the_slope_of_its_loss(problem: Problem) -> None:
    """By finite differences of what is learned, in the form in which it is."""
    method, parameters, h = dd(syn_steps=4, batch_syn=7), make_parameters(), 1e-5
    gradients = method.estimate(problem, parameters, 3).of(parameters)
    assert set(gradients) == set(parameters.tensors())
    draw = torch.Generator().manual_seed(2)
    for name, part in parameters.tensors().items():
        direction = torch.randn(part.shape, generator=draw, dtype=torch.float64)

        def loss(far: float, name: str = name, direction: Tensor = direction) -> Tensor:
            tensors = parameters.tensors()
            moved = parameters.with_tensors({**tensors, name: tensors[name] + far * direction})
            return method.estimate(problem, moved, 3).loss

        close((gradients[name] * direction).sum(), (loss(h) - loss(-h)) / (2 * h), rel=1e-6)


def test_several_unrolls_are_their_mean(problem: Problem) -> None:
    method, parameters = dd(segments=3), make_parameters()
    found = method.estimate(problem, parameters, 2)
    parts = [by_hand(method, problem, parameters, 2, number) for number in range(3)]
    wanted = mean_estimate(parts)
    assert len({part.loss.item() for part in parts}) == 3
    assert wanted.images is not None
    close(found.loss, wanted.loss)
    close(found.images, wanted.images)


def test_ld_is_dd_without_the_images_gradient(problem: Problem) -> None:
    parameters = make_parameters()
    found = LABELS.estimate(problem, parameters, 0)
    wanted = dd(soft_labels=True, segments=2).estimate(
        dataclasses.replace(problem, resolved={}), parameters, 0
    )
    assert found.images is None
    assert torch.equal(found.labels, wanted.labels)
    assert torch.equal(found.step_size, wanted.step_size)
    assert set(LABELS.rates) == {"label_logits", "log_step_size"}


# -- what is drawn -------------------------------------------------------------------------------


def test_every_unroll_has_its_own_start_and_real_images(problem: Problem) -> None:
    method, parameters = dd(segments=2), make_parameters()
    places = [(0, 0), (0, 1), (1, 0)]
    problems = [method.outer_problem(problem, parameters, *place) for place in places]
    assert len({start.sum().item() for start, _ in problems}) == 3
    assert len({outer_loss(problems[0][0]).item() for _, outer_loss in problems}) == 3


def test_the_outer_loss_is_that_of_real_images_of_all_classes(problem: Problem) -> None:
    method, parameters = dd(batch_real=300), make_parameters()
    start, outer_loss = method.outer_problem(problem, parameters, 0, 0)
    images, labels = real_batch(method, problem, 0, 0)
    assert len(images) == 300
    assert set(labels.tolist()) == set(range(10))
    network = problem.fresh("distill", "network", 0, 0).double()
    assert torch.equal(parameter_vector(network), start)
    close(outer_loss(start), F.cross_entropy(network(images), labels).detach())


def test_a_truncated_unroll_ends_anywhere_it_fits(problem: Problem) -> None:
    method = dd(bptt_steps=2, syn_steps=4)
    ends = [method.steps(problem, iteration, 0) for iteration in range(300)]
    assert {end: ends.count(end) > 75 for end in sorted(set(ends))} == {2: True, 3: True, 4: True}


@pytest.mark.parametrize("gradient", ["reverse", "stored"])
def test_all_steps_are_no_truncation(problem: Problem, gradient: str) -> None:
    parameters = make_parameters()
    whole, truncated = (
        dd(gradient=gradient, bptt_steps=steps).estimate(
            dataclasses.replace(problem, resolved={}), parameters, 1
        )
        for steps in (None, 3)
    )
    assert torch.equal(whole.loss, truncated.loss)
    assert torch.equal(whole.images, truncated.images)


def test_more_differentiated_steps_than_steps_are_refused() -> None:
    with pytest.raises(SettingError, match=r"bptt_steps is 4; it must be at most syn_steps \(3\)"):
        dd(bptt_steps=4)


def test_an_estimate_depends_on_its_arguments_alone(problem: Problem) -> None:
    other, parameters = dataclasses.replace(problem, resolved={}), make_parameters()
    first = [METHOD.estimate(problem, parameters, iteration) for iteration in (0, 1)]
    again = [METHOD.estimate(other, parameters, iteration) for iteration in (1, 0)]
    assert torch.equal(first[0].images, again[1].images)
    assert torch.equal(first[1].images, again[0].images)
    assert not torch.equal(first[0].images, first[1].images)


# -- whole runs ----------------------------------------------------------------------------------


def initial(method: Method, distilled: SyntheticSet) -> SyntheticParameters:
    return pipeline.initial_parameters(
        tiny.digits(), distilled.whitening, method, tiny.DISTILL, seed=SEED
    )


def test_ld_leaves_images_alone_and_learns_labels_and_step_size(tmp_path: Path) -> None:
    distilled = tiny.distill(tmp_path, LABELS, seed=SEED, ema=0.5).last
    begun = initial(LABELS, distilled)
    assert torch.equal(distilled.images, begun.images)
    assert distilled.is_soft
    assert distilled.labels.shape == (10, 10)
    assert (distilled.labels - begun.labels).abs().max() > 1e-4
    assert distilled.step_size is not None
    assert abs(distilled.step_size / begun.step_size.item() - 1) > 1e-4
    norms = [line["grad_norm"] for line in read_log(tmp_path / "log.jsonl") if "loss" in line]
    assert min(norms) > 0  # of the labels


def test_dd_learns_images_and_labels_together(tmp_path: Path) -> None:
    method = dd(soft_labels=True, lr_label=100.0)
    distilled = tiny.distill(tmp_path, method, seed=SEED).last
    begun = initial(method, distilled)
    assert (distilled.images - begun.images).abs().max() > 1e-4
    assert (distilled.labels - begun.labels).abs().max() > 1e-4


@pytest.mark.parametrize(
    ("method", "ema"),
    [(dd(bptt_steps=2, segments=2, batch_syn=7), 0.0), (LABELS, 0.5)],
    ids=["dd", "ld"],
)
def test_an_interrupted_run_resumes_to_the_same_bits(
    tmp_path: Path, method: Method, ema: float
) -> None:
    whole = tiny.distill(tmp_path / "whole", method, seed=SEED, ema=ema).last
    with pytest.raises(KeyboardInterrupt):
        tiny.distill(tmp_path / "parts", method, seed=SEED, ema=ema, stop=3)
    parts = tiny.distill(tmp_path / "parts", method, seed=SEED, ema=ema).last
    assert torch.equal(whole.images, parts.images)
    assert torch.equal(whole.labels, parts.labels)
    assert whole.step_size == parts.step_size


WORDS = f"{tiny.LOOP_WORDS} --syn-steps 3 --batch-real 32 {tiny.NETWORK_WORDS} {tiny.SCORE_WORDS}"


@pytest.mark.parametrize("method", ["dd", "ld"])
def test_the_command_needs_no_experts(
    tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    words = ["distill", "--device", "cpu", "--method", method, "--out", str(out), *WORDS.split()]
    assert cli.main(words) == 0
    assert f"{method}: " in capsys.readouterr().out
    assert cli.main(["report", str(out)]) == 0
    assert SyntheticSet.load(out / "best").info["method"] == method
