"""Trajectory matching: what is drawn, what is refused, and the estimate against slow twins."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import pytest
import torch
from torch._inductor.exc import InvalidCxxCompiler

import tiny
from reference import plain_match
from tiny import EXPERTS, METHOD
from trajmatch import match_segment
from trajmatch.config import DSA_STRATEGY
from trajmatch.data.augment import Augmentation
from trajmatch.errors import FileFormatError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import MTT, Conditions, Estimate, SyntheticParameters, unrolled
from trajmatch.methods.mtt import SegmentReader
from trajmatch.runtime.compiling import compiled
from trajmatch.unroll import Schedule
from trajmatch.unroll.convnet import ConvNetGradient
from trajmatch.unroll.gradient import DerivedGradient, gradient_fn
from trajmatch.unroll.native import Compiled

STEP_SIZE = 0.03


@pytest.fixture(scope="module")
def library() -> ExpertLibrary:
    return tiny.library()


def mtt(**settings: object) -> MTT:
    return dataclasses.replace(METHOD, **settings)


def check(method: MTT, library: ExpertLibrary) -> None:
    method.check(Conditions(library.spec, ipc=1, expert_epochs=library.epochs))


@pytest.fixture
def parameters() -> SyntheticParameters:
    return make_parameters(None)


def make_parameters(soft: int | None) -> SyntheticParameters:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(10, 1, 8, 8, generator=generator)
    return SyntheticParameters.begin(images, torch.arange(10), step_size=STEP_SIZE, soft=soft)


# -- which segment -------------------------------------------------------------------------------


@pytest.fixture
def renumbered(library: ExpertLibrary) -> ExpertLibrary:
    """The library with gaps in its experts' numbers; their files are not read."""
    other = ExpertLibrary.open(library.path)
    other.experts = [0, 3, 7]
    return other


def test_segments_are_uniform_over_experts_and_start_epochs(renumbered: ExpertLibrary) -> None:
    problem, method = tiny.problem(renumbered), mtt(max_start_epoch=3)
    draws = 4500
    counts: dict[tuple[int, int], int] = {}
    for iteration in range(draws):
        cell = method.segment_at(problem, iteration, 0)
        counts[cell] = counts.get(cell, 0) + 1
    assert set(counts) == {(expert, epoch) for expert in (0, 3, 7) for epoch in (0, 1, 2)}
    expected = draws / 9
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 20.1  # 99 % of the chi-squared distribution of 8 degrees of freedom


def test_segments_repeat_by_seed_and_not_by_order(renumbered: ExpertLibrary) -> None:
    method = mtt(max_start_epoch=3)

    def draws(seed: int, number: int = 0) -> list[tuple[int, int]]:
        problem = tiny.problem(renumbered, seed=seed)
        return [method.segment_at(problem, i, number) for i in range(60)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(5) != draws(5, number=1)
    problem = tiny.problem(renumbered, seed=5)
    assert [method.segment_at(problem, i, 0) for i in reversed(range(60))] == draws(5)[::-1]


def test_the_last_start_epoch_is_the_last_that_fits(library: ExpertLibrary) -> None:
    """T+ - 1 + M is the experts' last epoch: drawn, and read without an error."""
    problem, method = tiny.problem(library), mtt(max_start_epoch=2, expert_epochs=2)
    check(method, library)
    drawn = {method.segment_at(problem, i, 0) for i in range(40)}
    assert max(epoch for _, epoch in drawn) + 2 == library.epochs == EXPERTS.epochs
    assert method.last_epoch == library.epochs
    for expert, epoch in drawn:
        library.segment(expert, epoch, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"max_start_epoch": 6, "expert_epochs": 1},
            ["epoch 6", "max_start_epoch 6 - 1", "expert_epochs 1", "have 3",
             "max_start_epoch=3", "epochs=6"],
        ),
        (
            {"max_start_epoch": 3, "expert_epochs": 2},
            ["epoch 4", "have 3", "max_start_epoch=2", "epochs=4"],
        ),
        (
            {"max_start_epoch": 1, "expert_epochs": 4},
            ["epoch 4", "expert_epochs 4", "have 3", "train with epochs=4"],
        ),
    ],
)  # fmt: skip
def test_experts_that_are_too_short_are_refused(
    library: ExpertLibrary, settings: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(SettingError) as error:
        check(mtt(**settings), library)
    message = str(error.value)
    assert [word for word in words if word not in message] == []
    assert "\n" not in message
    assert ("max_start_epoch=" in message) == (settings["expert_epochs"] <= 3)
    if settings["expert_epochs"] <= 3:  # the setting that is proposed is accepted, and is the most
        fits = int(message.split("max_start_epoch=")[1].split()[0])
        check(mtt(**{**settings, "max_start_epoch": fits}), library)
        with pytest.raises(SettingError):
            check(mtt(**{**settings, "max_start_epoch": fits + 1}), library)


def test_a_problem_without_experts_is_refused(library: ExpertLibrary) -> None:
    with pytest.raises(SettingError, match=r"mtt matches experts; give experts= a library"):
        METHOD.check(Conditions(library.spec, ipc=1))
    with pytest.raises(SettingError, match="matches experts"):
        METHOD.segment_at(tiny.bare_problem(), 0, 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_syn": 11}, r"batch_syn is 11 and there are 10 synthetic images; use 1 to 10"),
        ({"init_labels": "experts"}, r"init_labels is experts and no labels are learned"),
        ({"augment": "colour"}, "colour"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    library: ExpertLibrary, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(SettingError, match=message):
        check(mtt(**settings), library)


# -- the estimate --------------------------------------------------------------------------------


def close(found: torch.Tensor | None, wanted: torch.Tensor) -> None:
    assert found is not None
    assert found.shape == wanted.shape
    assert (found - wanted).norm() <= 1e-4 * wanted.norm()
    assert wanted.norm() > 0


def rows(library: ExpertLibrary, expert: int, epoch: int, length: int) -> tuple:
    trajectory = library.trajectory(expert)
    return trajectory.row(epoch), trajectory.row(epoch + length)


@pytest.mark.parametrize("soft", [None, 10], ids=["hard", "soft"])
@pytest.mark.parametrize("expert_epochs", [1, 2])
def test_an_estimate_is_match_segment_on_the_segment_drawn(
    library: ExpertLibrary, soft: int | None, expert_epochs: int
) -> None:
    parameters, problem = make_parameters(soft), tiny.problem(library)
    method = mtt(augment=None, expert_epochs=expert_epochs, gradient="reverse")
    for iteration in range(3):
        found = method.estimate(problem, parameters, iteration)
        expert, epoch = method.segment_at(problem, iteration, 0)
        wanted = match_segment(
            library.spec.build(seed=9),
            *rows(library, expert, epoch, expert_epochs),
            parameters.images,
            parameters.labels,
            STEP_SIZE,
            steps=method.syn_steps,
            method="stored",
        )
        assert found.loss.item() == pytest.approx(wanted.loss.item(), rel=1e-6)
        close(found.images, wanted.grad_images)
        assert found.step_size is not None
        close(found.step_size, wanted.grad_step_size)
        if wanted.grad_labels is None:
            assert found.labels is None
        else:
            close(found.labels, wanted.grad_labels)


def by_hand(
    library: ExpertLibrary,
    method: MTT,
    parameters: SyntheticParameters,
    segment: tuple,
    names: tuple,
) -> Estimate:
    """By plain back-propagation through the whole unroll, on the batches and draws of `names`."""
    augment = Augmentation(str(method.augment))
    schedule = Schedule.make(
        parameters.images, steps=method.syn_steps, batch_syn=method.batch_syn, augment=augment,
        seed=4, names=("distill", "walk", *names),
    )  # fmt: skip
    loss, _, images, step_size, *labels = plain_match(
        library.spec.build(seed=0),
        *rows(library, *segment, method.expert_epochs),
        parameters.images,
        parameters.labels,
        parameters.step_size,
        schedule,
        augment,
    )
    return Estimate(loss, images, labels[0] if labels else None, step_size)


@pytest.mark.parametrize("soft", [None, 10], ids=["hard", "soft"])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_several_segments_are_their_mean(
    library: ExpertLibrary, segments: int, soft: int | None
) -> None:
    parameters, problem = make_parameters(soft), tiny.problem(library, seed=4)
    method = mtt(segments=segments, batch_syn=4, augment=DSA_STRATEGY)
    for iteration in (0, 7):
        found = method.estimate(problem, parameters, iteration)
        parts = [
            by_hand(
                library,
                method,
                parameters,
                method.segment_at(problem, iteration, n),
                (iteration, n),
            )
            for n in range(segments)
        ]
        assert found.loss.item() == pytest.approx(
            sum(part.loss.item() for part in parts) / segments, rel=1e-5
        )
        close(found.images, sum(part.images for part in parts) / segments)
        close(found.step_size, sum(part.step_size for part in parts) / segments)
        if soft:
            close(found.labels, sum(part.labels for part in parts) / segments)


def test_segments_of_one_iteration_have_their_own_batches_and_draws(
    library: ExpertLibrary, parameters: SyntheticParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    schedules = []
    original = Schedule.make

    def make(*args: object, **kwargs: object) -> Schedule:
        schedules.append(original(*args, **kwargs))
        return schedules[-1]

    monkeypatch.setattr(Schedule, "make", make)
    problem, method = tiny.problem(library), mtt(segments=2, batch_syn=4, syn_steps=6)
    method.estimate(problem, parameters, 0)
    method.estimate(problem, parameters, 1)
    batches = [torch.cat(schedule.indices).tolist() for schedule in schedules]
    draws = [[draw.name for draw in schedule.draws] for schedule in schedules]
    assert len({str(batch) for batch in batches}) == len({str(draw) for draw in draws}) == 4


def test_an_estimate_depends_on_its_arguments_alone(
    library: ExpertLibrary, parameters: SyntheticParameters
) -> None:
    one, other = tiny.problem(library), tiny.problem(library)
    first = [METHOD.estimate(one, parameters, iteration) for iteration in (0, 1, 2)]
    again = [METHOD.estimate(other, parameters, iteration) for iteration in (2, 0, 1, 2)]
    for a, b in zip(first, [again[1], again[2], again[3]], strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.loss, b.loss)
    assert torch.equal(again[0].images, again[3].images)
    assert not torch.equal(first[0].images, first[1].images)
    elsewhere = METHOD.estimate(tiny.problem(library, seed=1), parameters, 0)
    assert not torch.equal(first[0].images, elsewhere.images)


def test_two_methods_of_one_problem_draw_their_own_segments(
    library: ExpertLibrary, parameters: SyntheticParameters
) -> None:
    shared, longer = tiny.problem(library), mtt(expert_epochs=2)
    METHOD.estimate(shared, parameters, 0)
    found = longer.estimate(shared, parameters, 0)
    alone = longer.estimate(tiny.problem(library), parameters, 0)
    assert torch.equal(found.images, alone.images)
    moved = dataclasses.replace(shared, seed=1)
    found = METHOD.estimate(moved, parameters, 0)
    alone = METHOD.estimate(tiny.problem(library, seed=1), parameters, 0)
    assert torch.equal(found.images, alone.images)


@pytest.mark.parametrize(("gradient", "keep"), [("reverse", 0), ("stored", 3), ("auto", 3)])
def test_how_many_graphs_are_kept_is_resolved_once(
    library: ExpertLibrary,
    parameters: SyntheticParameters,
    monkeypatch: pytest.MonkeyPatch,
    gradient: str,
    keep: int,
) -> None:
    problem, method = tiny.problem(library), mtt(gradient=gradient)
    assert problem.resolved == {}
    method.estimate(problem, parameters, 0)
    assert problem.resolved["keep"] == keep
    assert gradient in problem.notes["keep_reason"]
    resumed = tiny.problem(library, resolved=dict(problem.resolved))
    monkeypatch.setattr(unrolled, "plan", lambda *a: pytest.fail("it is resolved already"))
    assert torch.equal(
        method.estimate(resumed, parameters, 1).images,
        method.estimate(problem, parameters, 1).images,
    )


class BrokenCompiler:
    """`compiled` on a machine without a C++ compiler."""

    def __call__(self, function: Any) -> Any:
        def compiler(function: Any, **options: Any) -> Any:
            def call(*arguments: Any) -> Any:
                raise InvalidCxxCompiler

            return call

        return compiled(function, compiler=compiler, announced={"compiling"})


@pytest.mark.parametrize("works", [True, False])
def test_what_was_compiled_is_recorded(
    library: ExpertLibrary,
    parameters: SyntheticParameters,
    monkeypatch: pytest.MonkeyPatch,
    works: bool,
) -> None:
    def through(function: Any) -> Any:
        return compiled(function, compiler=lambda function, **options: function)

    module = tiny.problem(library).module
    functions = Compiled.of(ConvNetGradient.of(module), through if works else BrokenCompiler())
    derived = DerivedGradient(functions, "float32")
    monkeypatch.setattr(
        unrolled, "gradient_fn",
        lambda module, *, precision, compile: derived if compile else gradient_fn(module),
    )  # fmt: skip
    problem = tiny.problem(library, compile="yes")
    first = METHOD.estimate(problem, parameters, 0)
    assert problem.resolved["compile"] is works
    eager = METHOD.estimate(tiny.problem(library, compile="no"), parameters, 0)
    torch.testing.assert_close(first.images, eager.images, rtol=1e-4, atol=1e-5)
    if not works:  # from then on it is the eager one, to the bit, as after a resumption
        after = METHOD.estimate(problem, parameters, 1)
        eager = METHOD.estimate(tiny.problem(library, compile="no"), parameters, 1)
        assert torch.equal(after.images, eager.images)


@pytest.mark.parametrize("none", [None, "none"])
def test_no_augmentation_by_either_name(none: str | None) -> None:
    assert mtt(augment=none).augmentation is None


# -- reading ahead -------------------------------------------------------------------------------


def test_the_next_segment_is_read_ahead_and_is_the_one_that_is_drawn(
    library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem, method = tiny.problem(library), mtt(segments=2)
    reader = SegmentReader(method, library, problem.seed)
    read: list[tuple[int, int]] = []
    segment = library.segment

    def recorded(
        expert: int, start: int, length: int, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        read.append((expert, start))
        return segment(expert, start, length, out)

    monkeypatch.setattr(library, "segment", recorded)
    order = [(0, 0), (0, 1), (1, 0), (7, 0), (7, 1)]  # 7: a run that was resumed there
    for iteration, number in order:
        rows = reader.read(iteration, number)
        expert, epoch = method.segment_at(problem, iteration, number)
        wanted = segment(expert, epoch, method.expert_epochs)
        assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True))
    reader._reader.shutdown()
    expected = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (7, 1), (8, 0)]
    assert read == [method.segment_at(problem, *place) for place in expected]


def test_rows_stay_as_they_are_until_the_next_read(library: ExpertLibrary) -> None:
    problem, method = tiny.problem(library), mtt(segments=2)
    reader = SegmentReader(method, library, problem.seed)
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (7, 1)]
    drawn = [method.segment_at(problem, *place) for place in order]
    assert all(one != other for one, other in itertools.pairwise(drawn[:4]))
    memory = set()
    for place, (expert, epoch) in zip(order, drawn, strict=True):
        rows = reader.read(*place)
        (following,) = reader._waiting.values()
        following.result()  # read by now, into the other buffers
        wanted = library.segment(expert, epoch, method.expert_epochs)
        assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True))
        memory |= {row.data_ptr() for row in rows}
    assert len(memory) == 4


def test_a_broken_file_is_reported_by_the_iteration_that_needs_it(
    library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch, parameters: SyntheticParameters
) -> None:
    def broken(*_: object) -> None:
        raise FileFormatError("row 3 of 'parameters' does not have its checksum")

    monkeypatch.setattr(library, "segment", broken)
    with pytest.raises(FileFormatError, match="row 3"):
        METHOD.estimate(tiny.problem(library), parameters, 0)
