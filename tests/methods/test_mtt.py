"""Trajectory matching: what is drawn, what is refused, and the estimate against slow twins."""

from __future__ import annotations

import dataclasses
import itertools

import pytest
import torch

import tiny
from reference import plain_match
from tiny import DISTILL, EXPERTS
from trajmatch import match_segment
from trajmatch.config import DSA_STRATEGY as EVERY_CHANGE
from trajmatch.config import DistillConfig
from trajmatch.data.augment import Augmentation
from trajmatch.errors import SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import MTT, Estimate, SyntheticParameters
from trajmatch.methods import unrolled as walking
from trajmatch.unroll import Schedule

STEP_SIZE = 0.03


@pytest.fixture(scope="module")
def library() -> ExpertLibrary:
    return tiny.library()


def matching(library: ExpertLibrary, *, seed: int = 0, **settings: object) -> MTT:
    config = dataclasses.replace(DISTILL, **settings)
    return MTT(tiny.ground(library), config, seed=seed)


@pytest.fixture
def learned() -> SyntheticParameters:
    return make_learned(None)


def make_learned(soft: int | None) -> SyntheticParameters:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(10, 1, 8, 8, generator=generator)
    return SyntheticParameters.begin(images, torch.arange(10), step_size=STEP_SIZE, soft=soft)


# -- which segment -------------------------------------------------------------------------------


@pytest.fixture
def peopled(library: ExpertLibrary) -> ExpertLibrary:
    """The library with experts numbered as after a loss; their files are not asked for."""
    other = ExpertLibrary.open(library.path)
    other.experts = [0, 3, 7]
    return other


def test_segments_are_uniform_over_experts_and_start_epochs(peopled: ExpertLibrary) -> None:
    method = matching(peopled, max_start_epoch=3)
    draws = 4500
    counts: dict[tuple[int, int], int] = {}
    for iteration in range(draws):
        cell = method.segment_at(iteration, 0)
        counts[cell] = counts.get(cell, 0) + 1
    assert set(counts) == {(expert, epoch) for expert in (0, 3, 7) for epoch in (0, 1, 2)}
    expected = draws / 9
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    assert chi_squared < 20.1  # 99 % of the chi-squared distribution of 8 degrees of freedom


def test_segments_repeat_by_seed_and_not_by_order(peopled: ExpertLibrary) -> None:
    def draws(seed: int, number: int = 0) -> list[tuple[int, int]]:
        method = matching(peopled, seed=seed, max_start_epoch=3)
        return [method.segment_at(i, number) for i in range(60)]

    assert draws(5) == draws(5)
    assert draws(5) != draws(6)
    assert draws(5) != draws(5, number=1)
    method = matching(peopled, seed=5, max_start_epoch=3)
    assert [method.segment_at(i, 0) for i in reversed(range(60))] == draws(5)[::-1]


def test_the_last_start_epoch_is_the_last_that_fits(library: ExpertLibrary) -> None:
    """T+ - 1 + M is the experts' last epoch: drawn, and read without complaint."""
    method = matching(library, max_start_epoch=2, expert_epochs=2)
    drawn = {method.segment_at(i, 0) for i in range(40)}
    assert max(epoch for _, epoch in drawn) + 2 == library.epochs == EXPERTS.epochs
    for expert, epoch in drawn:
        library.segment(expert, epoch, 2)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {"max_start_epoch": 6, "expert_epochs": 1},
            ["epoch 6", "max_start_epoch 6 - 1", "expert_epochs 1", "have 3",
             "--max-start-epoch 3", "--epochs 6"],
        ),
        (
            {"max_start_epoch": 3, "expert_epochs": 2},
            ["epoch 4", "have 3", "--max-start-epoch 2", "--epochs 4"],
        ),
        (
            {"max_start_epoch": 1, "expert_epochs": 4},
            ["epoch 4", "expert_epochs 4", "have 3", "train with --epochs 4"],
        ),
    ],
)  # fmt: skip
def test_experts_that_are_too_short_are_refused(
    library: ExpertLibrary, settings: dict[str, int], words: list[str]
) -> None:
    with pytest.raises(SettingError) as error:
        matching(library, **settings)
    said = str(error.value)
    assert [word for word in words if word not in said] == []
    assert "\n" not in said
    assert ("--max-start-epoch" in said) == (settings["expert_epochs"] <= 3)
    if settings["expert_epochs"] <= 3:  # the mend that is offered mends it
        fits = int(said.split("--max-start-epoch ")[1].split()[0])
        matching(library, **{**settings, "max_start_epoch": fits})
        with pytest.raises(SettingError):
            matching(library, **{**settings, "max_start_epoch": fits + 1})


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
    learned = make_learned(soft)
    method = matching(library, augment=None, expert_epochs=expert_epochs, gradient="reverse")
    for iteration in range(3):
        found = method.estimate(learned, iteration)
        expert, epoch = method.segment_at(iteration, 0)
        wanted = match_segment(
            library.spec.build(seed=9),
            *rows(library, expert, epoch, expert_epochs),
            learned.images,
            learned.labels,
            STEP_SIZE,
            steps=DISTILL.syn_steps,
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
    config: DistillConfig,
    learned: SyntheticParameters,
    segment: tuple,
    names: tuple,
) -> Estimate:
    """By plain back-propagation through the whole walk, on the batches and draws of `names`."""
    augment = Augmentation(str(config.augment))
    schedule = Schedule.make(
        learned.images, steps=config.syn_steps, batch_syn=config.batch_syn, augment=augment,
        seed=4, names=("distill", "walk", *names),
    )  # fmt: skip
    loss, _, images, step_size, *labels = plain_match(
        library.spec.build(seed=0),
        *rows(library, *segment, config.expert_epochs),
        learned.images,
        learned.labels,
        learned.step_size,
        schedule,
        augment,
    )
    return Estimate(loss, images, labels[0] if labels else None, step_size)


@pytest.mark.parametrize("soft", [None, 10], ids=["hard", "soft"])
@pytest.mark.parametrize("segments", [1, 2, 3])
def test_several_segments_are_their_mean(
    library: ExpertLibrary, segments: int, soft: int | None
) -> None:
    learned = make_learned(soft)
    method = matching(library, seed=4, segments=segments, batch_syn=4, augment=EVERY_CHANGE)
    for iteration in (0, 7):
        found = method.estimate(learned, iteration)
        parts = [
            by_hand(
                library, method.config, learned, method.segment_at(iteration, n), (iteration, n)
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


def test_segments_of_one_iteration_see_other_batches_and_draws(
    library: ExpertLibrary, learned: SyntheticParameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    original = Schedule.make

    def make(*args: object, **kwargs: object) -> Schedule:
        made.append(original(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(Schedule, "make", make)
    method = matching(library, segments=2, batch_syn=4, syn_steps=6)
    method.estimate(learned, 0)
    method.estimate(learned, 1)
    batches = [torch.cat(schedule.indices).tolist() for schedule in made]
    draws = [[draw.name for draw in schedule.draws] for schedule in made]
    assert len({str(batch) for batch in batches}) == len({str(draw) for draw in draws}) == 4


def test_an_estimate_depends_on_its_arguments_alone(
    library: ExpertLibrary, learned: SyntheticParameters
) -> None:
    one, other = matching(library), matching(library)
    first = [one.estimate(learned, iteration) for iteration in (0, 1, 2)]
    again = [other.estimate(learned, iteration) for iteration in (2, 0, 1, 2)]
    for a, b in zip(first, [again[1], again[2], again[3]], strict=True):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.loss, b.loss)
    assert torch.equal(again[0].images, again[3].images)
    assert not torch.equal(first[0].images, first[1].images)
    elsewhere = matching(library, seed=1).estimate(learned, 0)
    assert not torch.equal(first[0].images, elsewhere.images)


@pytest.mark.parametrize(("asked", "keep"), [("reverse", 0), ("stored", 3), ("auto", 3)])
def test_how_many_graphs_are_kept_is_decided_once(
    library: ExpertLibrary,
    learned: SyntheticParameters,
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    keep: int,
) -> None:
    method = matching(library, gradient=asked)
    assert method.decisions == {}
    method.estimate(learned, 0)
    assert method.decisions["keep"] == keep
    assert asked in method.decisions["reason"]
    resumed = matching(library, gradient=asked)
    resumed.decisions.update(method.decisions)
    monkeypatch.setattr(walking, "plan", lambda *a: pytest.fail("it was decided already"))
    assert torch.equal(resumed.estimate(learned, 1).images, method.estimate(learned, 1).images)


@pytest.mark.parametrize("none", [None, "none"])
def test_no_augmentation_by_either_name(library: ExpertLibrary, none: str | None) -> None:
    assert matching(library, augment=none).augment is None


def test_an_unknown_augmentation_is_refused(library: ExpertLibrary) -> None:
    with pytest.raises(SettingError, match="colour"):
        matching(library, augment="colour")


# -- reading ahead -------------------------------------------------------------------------------


def test_the_next_segment_is_read_ahead_and_is_the_one_that_is_drawn(
    library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = matching(library, segments=2)
    read: list[tuple[int, int]] = []
    segment = library.segment

    def watched(
        expert: int, start: int, length: int, out: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        read.append((expert, start))
        return segment(expert, start, length, out)

    monkeypatch.setattr(library, "segment", watched)
    order = [(0, 0), (0, 1), (1, 0), (7, 0), (7, 1)]  # 7: a run that was taken up elsewhere
    for iteration, number in order:
        rows = method._ahead(iteration, number)
        expert, epoch = method.segment_at(iteration, number)
        wanted = segment(expert, epoch, method.config.expert_epochs)
        assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True))
    method._reader.shutdown()
    walked = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (7, 1), (8, 0)]
    assert read == [method.segment_at(*step) for step in walked]


def test_rows_stay_as_they_are_until_the_next_are_asked_for(library: ExpertLibrary) -> None:
    method = matching(library, segments=2)
    order = [(0, 0), (0, 1), (1, 0), (1, 1), (7, 0), (7, 1)]
    drawn = [method.segment_at(*step) for step in order]
    assert all(one != other for one, other in itertools.pairwise(drawn[:4]))
    memory = set()
    for step, (expert, epoch) in zip(order, drawn, strict=True):
        rows = method._ahead(*step)
        (following,) = method._waiting.values()
        following.result()  # read by now, and elsewhere
        wanted = library.segment(expert, epoch, method.config.expert_epochs)
        assert all(torch.equal(a, b) for a, b in zip(rows, wanted, strict=True))
        memory |= {row.data_ptr() for row in rows}
    assert len(memory) == 4


def test_a_broken_file_is_told_by_the_iteration_that_needs_it(
    library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch, learned: SyntheticParameters
) -> None:
    from trajmatch.errors import FileFormatError

    def broken(*_: object) -> None:
        raise FileFormatError("row 3 of 'parameters' does not have its checksum")

    method = matching(library)
    monkeypatch.setattr(library, "segment", broken)
    with pytest.raises(FileFormatError, match="row 3"):
        method.estimate(learned, 0)
