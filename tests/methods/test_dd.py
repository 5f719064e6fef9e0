"""DD and LD: the gradient of the loss on real images after a walk from a fresh network."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tiny
from reference import plain_loss, plain_walk
from tiny import DISTILL
from trajmatch import cli, pipeline
from trajmatch.config import DSA_STRATEGY as EVERY_CHANGE
from trajmatch.config import DistillConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.methods import Estimate, Problem, SyntheticParameters, begin
from trajmatch.methods.dd import DD
from trajmatch.methods.parameters import mean_estimate
from trajmatch.networks.functional import parameter_vector
from trajmatch.storage import read_log
from trajmatch.synthetic import SyntheticSet
from trajmatch.types import Tensor
from trajmatch.unroll import Schedule

SETTINGS = dataclasses.replace(DISTILL, method="dd", batch_real=32, augment=EVERY_CHANGE)
SEED = 4


def ground() -> Problem:
    """The digits and a smooth network: finite differences step over no kink."""
    found = tiny.ground()
    options = {**found.spec.options, "activation": "sigmoid"}
    spec = dataclasses.replace(found.spec, options=options)
    return dataclasses.replace(found, spec=spec, library=None)


def descent(**settings: object) -> DD:
    method = begin(ground(), dataclasses.replace(SETTINGS, **settings), seed=SEED)
    assert isinstance(method, DD)
    return method


def make_learned(*, soft: bool = True) -> SyntheticParameters:
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


def by_hand(method: DD, learned: SyntheticParameters, iteration: int, number: int = 0) -> Estimate:
    """By plain back-propagation through the whole walk, or what of it is in the window."""
    config, here = method.config, (iteration, number)
    augment = Augmentation(str(config.augment))
    steps = method.steps(*here)
    schedule = Schedule.make(
        learned.images, steps=steps, batch_syn=config.batch_syn, augment=augment, seed=SEED,
        names=("distill", "walk", *here),
    )  # fmt: skip
    first = 0 if config.window is None else steps - config.window
    network = method.ground.fresh(SEED, "distill", "network", *here)
    vector = parameter_vector(network).double()
    labels = learned.labels
    if first:
        early = Schedule(first, draws=schedule.draws[:first])
        given = (learned.images, labels, learned.step_size)
        vector = plain_walk(network, vector, *given, early, augment).detach()
    late = Schedule(
        steps - first,
        None if schedule.indices is None else schedule.indices[first:],
        schedule.draws[first:],
    )
    leaves = [learned.images.clone().requires_grad_(), learned.step_size.requires_grad_()]
    if labels.is_floating_point():
        labels = labels.clone().requires_grad_()
        leaves.append(labels)
    end = plain_walk(network, vector, leaves[0], labels, leaves[1], late, augment)
    real, labels_at = real_batch(method, *here)
    loss = plain_loss(network, end, real, labels_at)
    images, step_size, *soft = torch.autograd.grad(loss, leaves)
    return Estimate(loss.detach(), images, soft[0] if soft else None, step_size)


def real_batch(method: DD, iteration: int, number: int) -> tuple[Tensor, Tensor]:
    from trajmatch.rng import stream

    draw = stream(SEED, "distill", "real", iteration, number)
    images, labels = method.ground.batch(method.config.batch_real, draw)
    return images.double(), labels


# -- the gradient --------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["reverse", "stored"])
@pytest.mark.parametrize("soft", [False, True], ids=["hard", "soft"])
@pytest.mark.parametrize(
    "settings", [{}, {"batch_syn": 4}, {"window": 1, "syn_steps": 4}], ids=["all", "few", "window"]
)
def test_an_estimate_is_plain_backpropagation(
    settings: dict[str, int], soft: bool, gradient: str
) -> None:
    method, learned = descent(**settings, gradient=gradient), make_learned(soft=soft)
    for iteration in (0, 1, 7):
        found, wanted = method.estimate(learned, iteration), by_hand(method, learned, iteration)
        close(found.loss, wanted.loss)
        close(found.images, wanted.images)
        close(found.step_size, wanted.step_size)
        if wanted.labels is None:
            assert found.labels is None
        else:
            close(found.labels, wanted.labels)


def test_an_estimate_is_the_slope_of_its_loss() -> None:
    """By finite differences of what is learned, in the form in which it is."""
    method, learned, h = descent(syn_steps=4, batch_syn=7), make_learned(), 1e-5
    gradients = method.estimate(learned, 3).of(learned)
    assert set(gradients) == set(learned.tensors())
    draw = torch.Generator().manual_seed(2)
    for name, part in learned.tensors().items():
        way = torch.randn(part.shape, generator=draw, dtype=torch.float64)

        def loss(far: float, name: str = name, way: Tensor = way) -> Tensor:
            tensors = learned.tensors()
            moved = learned.with_tensors({**tensors, name: tensors[name] + far * way})
            return method.estimate(moved, 3).loss

        close((gradients[name] * way).sum(), (loss(h) - loss(-h)) / (2 * h), rel=1e-6)


def test_several_walks_are_their_mean() -> None:
    method, learned = descent(segments=3), make_learned()
    found = method.estimate(learned, 2)
    parts = [by_hand(method, learned, 2, number) for number in range(3)]
    wanted = mean_estimate(parts)
    assert len({part.loss.item() for part in parts}) == 3
    assert wanted.images is not None
    close(found.loss, wanted.loss)
    close(found.images, wanted.images)


# -- what is drawn -------------------------------------------------------------------------------


def test_every_walk_starts_from_another_network_and_asks_other_images() -> None:
    method, learned = descent(segments=2), make_learned()
    asked = [method.outer_problem(learned, *here) for here in [(0, 0), (0, 1), (1, 0)]]
    assert len({start.sum().item() for start, _ in asked}) == 3
    assert len({outer_loss(asked[0][0]).item() for _, outer_loss in asked}) == 3


def test_the_question_is_the_loss_on_real_images_of_all_classes() -> None:
    method, learned = descent(batch_real=300), make_learned()
    start, outer_loss = method.outer_problem(learned, 0, 0)
    images, labels = real_batch(method, 0, 0)
    assert len(images) == 300
    assert set(labels.tolist()) == set(range(10))
    network = method.ground.fresh(SEED, "distill", "network", 0, 0).double()
    assert torch.equal(parameter_vector(network), start)
    close(outer_loss(start), F.cross_entropy(network(images), labels).detach())


def test_a_window_ends_anywhere_it_fits() -> None:
    method = descent(window=2, syn_steps=4)
    ends = [method.steps(iteration, 0) for iteration in range(300)]
    assert {end: ends.count(end) > 75 for end in sorted(set(ends))} == {2: True, 3: True, 4: True}


@pytest.mark.parametrize("gradient", ["reverse", "stored"])
def test_a_window_of_all_steps_is_none(gradient: str) -> None:
    learned = make_learned()
    whole, window = (
        descent(gradient=gradient, window=window).estimate(learned, 1) for window in (None, 3)
    )
    assert torch.equal(whole.loss, window.loss)
    assert torch.equal(whole.images, window.images)


def test_a_window_longer_than_the_walk_is_refused() -> None:
    with pytest.raises(SettingError, match=r"window is 4; it must be at most syn_steps \(3\)"):
        descent(window=4)


def test_an_estimate_depends_on_its_arguments_alone() -> None:
    one, other, learned = descent(), descent(), make_learned()
    first = [one.estimate(learned, iteration) for iteration in (0, 1)]
    again = [other.estimate(learned, iteration) for iteration in (1, 0)]
    assert torch.equal(first[0].images, again[1].images)
    assert torch.equal(first[1].images, again[0].images)
    assert not torch.equal(first[0].images, first[1].images)


# -- whole runs ----------------------------------------------------------------------------------


def distilled(out: Path, stop: int | None = None, **settings: object) -> Path:
    """A run in `out`; `stop`: left by an error after so many iterations, as by a kill."""

    def leave(iteration: int, _: object) -> None:
        if iteration == stop:
            raise KeyboardInterrupt

    config: DistillConfig = dataclasses.replace(SETTINGS, **settings)
    pipeline.distill(
        tiny.digits(), None, out, config=config, evaluation=tiny.EVALUATE, network=tiny.NETWORK,
        seed=SEED, on_iteration=leave,
    )  # fmt: skip
    return out


def test_ld_leaves_images_alone_and_learns_labels_and_step_size(tmp_path: Path) -> None:
    settings = {"method": "ld", "ema": 0.5, "segments": 2, "lr_lr": 1e-4, "lr_label": 100.0}
    made = SyntheticSet.load(distilled(tmp_path / "run", **settings) / "last")
    config = dataclasses.replace(SETTINGS, **settings)
    begun = pipeline.initial_images(tiny.digits(), made.whitening, config, seed=SEED)
    assert torch.equal(made.images, begun.images)
    assert made.is_soft
    assert made.labels.shape == (10, 10)
    assert (made.labels - begun.labels).abs().max() > 1e-4
    assert made.step_size is not None
    assert abs(made.step_size / begun.step_size.item() - 1) > 1e-4
    norms = [
        line["grad_norm"] for line in read_log(tmp_path / "run" / "log.jsonl") if "loss" in line
    ]
    assert min(norms) > 0  # of the labels


def test_dd_learns_images_and_labels_together(tmp_path: Path) -> None:
    made = SyntheticSet.load(distilled(tmp_path / "run", soft_labels=True, lr_label=100.0) / "last")
    config = dataclasses.replace(SETTINGS, soft_labels=True)
    begun = pipeline.initial_images(tiny.digits(), made.whitening, config, seed=SEED)
    assert (made.images - begun.images).abs().max() > 1e-4
    assert (made.labels - begun.labels).abs().max() > 1e-4


@pytest.mark.parametrize(
    "settings",
    [{"window": 2, "segments": 2, "batch_syn": 7}, {"method": "ld", "ema": 0.5}],
    ids=["dd", "ld"],
)
def test_a_run_that_was_left_goes_on_to_the_same_bits(
    tmp_path: Path, settings: dict[str, object]
) -> None:
    whole = distilled(tmp_path / "whole", **settings)
    with pytest.raises(KeyboardInterrupt):
        distilled(tmp_path / "left", stop=3, **settings)
    left = distilled(tmp_path / "left", **settings)
    one, other = (SyntheticSet.load(run / "last") for run in (whole, left))
    assert torch.equal(one.images, other.images)
    assert torch.equal(one.labels, other.labels)
    assert one.step_size == other.step_size


WORDS = f"{tiny.DISTILL_WORDS} --batch-real 32 {tiny.NETWORK_WORDS} {tiny.JUDGE_WORDS}"


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
