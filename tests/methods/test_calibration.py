"""What MTT finds from the experts where it is not told: M, T+, N and alpha_0."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch.config import DistillConfig
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import DM, MTT
from trajmatch.methods.calibration import (
    EARLY,
    FEWEST_STEPS,
    LONGEST,
    MOST_STEPS,
    NEAR,
    RANGE,
    REACH,
    SEGMENTS,
    calibrate,
    calibration_words,
    distance_ratio,
    fallen,
    search,
    steps_for,
)
from trajmatch.methods.checkpoint import checkpoint_values
from trajmatch.methods.loop import StepSizeError
from trajmatch.pipeline import train_experts
from trajmatch.pipeline.initial import initial_parameters
from trajmatch.pipeline.run import FinishedRun, write_run
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_result

LOOP = DistillConfig(iterations=4, eval_every=2, checkpoint_every=1)
OWN = {"optimizer": None, "ema": None}
"""The method's own, in place of those of `tiny.DISTILL`."""
LEFT = {"syn_steps", "expert_epochs", "max_start_epoch", "step_size"}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ExpertLibrary:
    """One of 3 epochs of 60 steps: M is 2."""
    config = dataclasses.replace(
        tiny.EXPERTS, experts=1, epochs=3, steps_per_epoch=60, batch=16, lr=0.03
    )
    return train_experts(
        tiny.digits(), tmp_path_factory.mktemp("library") / "experts",
        network=tiny.NETWORK, config=config, resources=Resources(workers=1),
    )  # fmt: skip


def start(library: ExpertLibrary, method: MTT):
    problem = tiny.problem(library)
    return problem, initial_parameters(tiny.digits(), library.whitening, method, LOOP, seed=0)


def test_the_student_goes_as_far_as_it_should(library: ExpertLibrary) -> None:
    problem, parameters = start(library, MTT())
    found = calibrate(MTT(), problem, parameters)
    assert found.expert_epochs == 2  # 120 steps
    ratio = distance_ratio(found, problem, parameters, found.step_size)
    # found to a factor NEAR, and rounded to two digits
    assert REACH / NEAR / 1.05 < ratio < REACH * NEAR * 1.05
    below = distance_ratio(found, problem, parameters, found.step_size / 3)
    above = distance_ratio(found, problem, parameters, found.step_size * 3)
    assert below < ratio < above


def test_the_distance_is_that_of_plain_steps(library: ExpertLibrary) -> None:
    """The ratio of one segment, from autograd alone."""
    from trajmatch.networks.functional import FunctionalNetwork

    method = MTT(syn_steps=3, expert_epochs=2, max_start_epoch=2, augment=None, step_size=0.05)
    problem, parameters = start(library, method)
    network, ratios = FunctionalNetwork(problem.module), []
    for number in range(SEGMENTS):
        expert, epoch = method.segment_at(problem, number, 0)
        first, last = library.segment(expert, epoch, 2)
        vector = first.clone()
        for _ in range(3):
            vector = vector.detach().requires_grad_()
            loss = torch.nn.functional.cross_entropy(
                network(vector, parameters.images), parameters.labels
            )
            (gradient,) = torch.autograd.grad(loss, vector)
            vector = vector - 0.05 * gradient
        ratios.append(float((vector.detach() - first).norm() / (last - first).norm()))
    found = distance_ratio(method, problem, parameters, 0.05)
    assert found == pytest.approx(sum(ratios) / SEGMENTS, rel=1e-4)


def test_the_last_start_is_where_most_of_the_loss_has_fallen(library: ExpertLibrary) -> None:
    problem, parameters = start(library, MTT())
    found = calibrate(MTT(syn_steps=5, step_size=0.01), problem, parameters)
    rows = [library.trajectory(expert).metrics for expert in library.experts]
    losses = [sum(row[n]["train_loss"] for row in rows) / len(rows) for n in range(3)]
    first = fallen(losses, EARLY)
    assert found.max_start_epoch == min(first, 3 - found.expert_epochs + 1)
    assert found.last_epoch <= library.epochs


@pytest.mark.parametrize("step_size", [0.005, 0.021, 0.034, 0.05])
def test_a_step_is_at_most_twice_an_experts(step_size: float) -> None:
    steps = steps_for(step_size, rate=0.01)
    assert step_size * FEWEST_STEPS / steps <= LONGEST * 0.01
    assert steps == FEWEST_STEPS or step_size * FEWEST_STEPS / (steps - 5) > LONGEST * 0.01
    assert steps_for(10.0, rate=0.01) == MOST_STEPS


def test_what_is_given_stays(library: ExpertLibrary) -> None:
    given = MTT(syn_steps=7, expert_epochs=1, max_start_epoch=3, step_size=0.03)
    problem, parameters = start(library, given)
    assert calibrate(given, problem, parameters) is given
    assert "calibration" not in problem.resolved
    for name in LEFT:
        one = dataclasses.replace(given, **{name: None})
        found = calibrate(one, problem, parameters)
        assert dataclasses.replace(found, **{name: None}) == one
        assert getattr(found, name) is not None
        calibration = problem.resolved.pop("calibration")
        assert set(calibration["values"]) == set(calibration["reasons"]) == {name}
        (line,) = calibration_words(calibration)
        assert f" = {getattr(found, name):g}: " in line


def test_a_given_step_size_does_not_lengthen_the_student(library: ExpertLibrary) -> None:
    method = MTT(expert_epochs=1, max_start_epoch=2)
    problem, parameters = start(library, method)
    free = calibrate(method, problem, parameters)
    given = calibrate(dataclasses.replace(method, step_size=1.0), problem, parameters)
    assert (given.syn_steps, given.step_size) == (free.syn_steps, 1.0)


@pytest.mark.parametrize("power", [0.5, 0.9, 1.0, 2.0])
@pytest.mark.parametrize("scale", [0.3, 3.0, 40.0, 900.0])
def test_the_search_finds_the_step_size(scale: float, power: float) -> None:
    tried: list[float] = []

    def reached(step_size: float) -> float:
        tried.append(step_size)
        return scale * step_size**power

    wanted = (REACH / scale) ** (1 / power)
    if not RANGE[0] < wanted < RANGE[1]:
        with pytest.raises(SettingError):
            search(reached, 0.01)
        return
    found, ratio = search(reached, 0.01)
    assert REACH / NEAR <= ratio <= REACH * NEAR
    assert ratio == scale * found**power
    assert len(tried) <= 5


def test_a_student_that_diverges_or_is_satisfied_early() -> None:
    """Infinite above a step size; or hardly farther with a larger one, as loss is 0 soon."""
    found, ratio = search(lambda step: math.inf if step > 0.002 else 300 * step, 0.1)
    assert REACH / NEAR <= ratio <= REACH * NEAR
    found, ratio = search(lambda step: math.inf if step > 0.0011 else 300 * step, 0.1)
    assert 0.1 < ratio < REACH / NEAR  # the nearest there is
    found, ratio = search(lambda step: 0.6 * math.tanh(200 * step), 1.0)
    assert REACH / NEAR <= ratio <= REACH * NEAR
    assert 0.003 < found < 0.02


def test_no_step_size_does_it() -> None:
    with pytest.raises(SettingError, match=r"goes 0% .* give a step_size="):
        search(lambda step: 0.0, 0.01)
    with pytest.raises(SettingError, match=r"hardly move, .* higher learning rate"):
        search(lambda step: math.inf, 0.01)


@pytest.mark.parametrize(
    ("given", "mend"),
    [({"max_start_epoch": 4}, "max_start_epoch=3"), ({"expert_epochs": 4}, "expert_epochs=3")],
)
def test_what_experts_are_too_short_for(
    library: ExpertLibrary, given: dict[str, int], mend: str
) -> None:
    method = MTT(**given)
    problem, parameters = start(library, method)
    with pytest.raises(SettingError, match=f"these experts have 3 epochs; use {mend}"):
        calibrate(method, problem, parameters)


def distilled(library: ExpertLibrary, out: Path, iterations: int):
    method = MTT(lr_log_step_size=0.01, syn_steps=3)
    return tiny.distill(out, method, library, **OWN, iterations=iterations)


def test_a_longer_run_keeps_what_the_shorter_calibrated(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    """To the bit as one that was as long from the start."""
    distilled(library, tmp_path / "a", 2)
    longer = distilled(library, tmp_path / "a", 4)
    at_once = distilled(library, tmp_path / "b", 4)
    assert torch.equal(longer.last.images, at_once.last.images)
    assert longer.resolved["calibration"] == at_once.resolved["calibration"]
    assert set(longer.resolved["calibration"]["values"]) == LEFT - {"syn_steps"}


def test_the_epoch_by_which_a_loss_has_fallen() -> None:
    losses = [2.3, 1.9, 1.5, 1.2, 1.0, 0.9, 0.85, 0.8, 0.82]
    assert [fallen(losses, share) for share in (0.0, 0.1, 0.5, EARLY, 0.9, 1.0)] == [
        1, 2, 3, 4, 6, 8,
    ]  # fmt: skip


def test_a_run_is_continued_with_the_values_it_began_with(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    """Other ones than calibration would find."""
    given = MTT(
        lr_log_step_size=0.01, syn_steps=3, expert_epochs=1, max_start_epoch=1, step_size=0.077
    )
    tiny.distill(tmp_path / "a", given, library, **OWN, iterations=2)
    longer = distilled(library, tmp_path / "a", 4)
    at_once = tiny.distill(tmp_path / "b", given, library, **OWN, iterations=4)
    assert torch.equal(longer.last.images, at_once.last.images)
    assert longer.last.info["settings"]["step_size"] == 0.077


def test_the_result_says_what_was_calibrated(tmp_path: Path, library: ExpertLibrary) -> None:
    outcome = distilled(library, tmp_path, 2)
    settings = {"distill": {"method": "mtt", "step_size": None, "ipc": 1, "optimizer": None}}
    finished = FinishedRun(
        command="distill", settings=settings, seed=0, data=tiny.digits(), library=library,
        outcome=outcome, scores=[], seconds=1.0, device="cpu",
    )  # fmt: skip
    write_run(tmp_path, finished)
    result = read_result(tmp_path)
    values = result["resolved"]["calibration"]["values"]
    assert result["settings"]["distill"]["step_size"] == values["step_size"]
    assert result["settings"]["distill"]["optimizer"] == "adam(betas=(0.5, 0.9))"
    origin = checkpoint_values(tmp_path)["origin"]
    assert {name: origin[name] for name in values} == values


def test_a_step_size_that_collapses_ends_the_run(tmp_path: Path, library: ExpertLibrary) -> None:
    """Here because it begins far too high, where the student overshoots."""
    method = MTT(
        syn_steps=3, expert_epochs=1, max_start_epoch=2, step_size=3.0, lr_log_step_size=0.4
    )
    with pytest.raises(StepSizeError, match=r"fell from 3 to 0.\d+, .* step_size=1.5") as e:
        tiny.distill(tmp_path, method, library, **OWN, iterations=40, eval_every=100)
    assert e.value.first == 3


def test_other_methods_calibrate_nothing(library: ExpertLibrary) -> None:
    problem, parameters = start(library, MTT())
    assert DM().calibrated(problem, parameters) == DM()
