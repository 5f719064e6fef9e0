"""What a continued run takes from its earlier calls: the experts it began with, and its threads."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import cli, pipeline
from trajmatch.errors import MismatchError
from trajmatch.experts import ExpertLibrary
from trajmatch.experts.library import expert_path, numbers_in, plan_experts, ranges
from trajmatch.methods import DM, Outcome
from trajmatch.runtime.progress import Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_result
from trajmatch.storage.files import open_tensors, save_tensors
from trajmatch.synthetic import SyntheticSet


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library of four experts."""
    path = tmp_path_factory.mktemp("continuation") / "four"
    shutil.copytree(tiny.library().path, path)
    pipeline.train_experts(
        tiny.digits(), path, network=tiny.NETWORK,
        config=dataclasses.replace(tiny.EXPERTS, experts=4), resources=Resources(workers=1),
    )  # fmt: skip
    return path


def library_of(four: Path, out: Path, *numbers: int) -> Path:
    """A library with these of the four experts."""
    shutil.copytree(four, out)
    for number in set(range(4)) - set(numbers):
        expert_path(out, number).unlink()
    return out


class Heard(tiny.StopAfter):
    def __init__(self, stop: int | None = None) -> None:
        super().__init__(stop)
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def distill(out: Path, experts: Path | ExpertLibrary, progress: Silent, **more: object) -> Outcome:
    return pipeline.distill(
        tiny.digits(), tiny.METHOD, experts, out, config=tiny.DISTILL, evaluation=tiny.EVALUATE,
        progress=progress, **more,
    )  # fmt: skip


# -- experts -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "then", "used"),
    [((0, 1), (0, 1, 2, 3), "0-1"), ((0, 3), (0, 1, 2, 3), "0, 3"), ((2,), (0, 2), "2")],
)
def test_a_run_goes_on_with_the_experts_it_began_with(
    tmp_path: Path, four: Path, first: tuple[int, ...], then: tuple[int, ...], used: str
) -> None:
    before = library_of(four, tmp_path / "library", *first)
    undisturbed = distill(tmp_path / "whole", before, Silent())
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "run", before, Heard(2))
    for number in set(then) - set(first):
        shutil.copy(expert_path(four, number), before)
    heard = Heard()
    outcome = distill(tmp_path / "run", before, heard)
    assert torch.equal(outcome.last.images, undisturbed.last.images)
    assert outcome.last.info["experts"] == undisturbed.last.info["experts"]
    assert outcome.last.info["experts"]["experts"] == len(first)
    assert outcome.last.info["experts"].get("numbers", "0-1") == used
    assert f"experts {used} of the {len(then)} in {before} are matched" in heard.messages[0]


def test_an_expert_of_the_run_that_is_gone_is_named(tmp_path: Path, four: Path) -> None:
    library = library_of(four, tmp_path / "library", 0, 1, 2)
    with pytest.raises(KeyboardInterrupt):
        distill(tmp_path / "run", library, Heard(2))
    expert_path(library, 1).unlink()
    shutil.copy(expert_path(four, 3), library)  # as many as before
    with pytest.raises(MismatchError, match=r"has no expert 1; it has 0, 2-3; restore .*00001"):
        distill(tmp_path / "run", library, Heard())


def test_experts_that_are_chosen_are_compared(tmp_path: Path) -> None:
    distill(tmp_path / "run", tiny.library(), Heard())
    with pytest.raises(MismatchError, match=r"experts=2 of .*, this one has experts=1 of"):
        distill(tmp_path / "run", tiny.library().first(1), Heard())


def test_an_incomplete_library_is_told_of(tmp_path: Path, four: Path) -> None:
    library = library_of(four, tmp_path / "library", 0, 2)
    assert ExpertLibrary.open(library).planned == 4
    heard = Heard()
    distill(tmp_path / "run", library, heard)
    assert heard.messages[0] == (
        f"the library {library} is incomplete: 2 of 4 planned experts are there; 0, 2 are matched, "
        "also when the run is continued"
    )
    heard = Heard()
    distill(tmp_path / "other", four, heard)
    assert not [text for text in heard.messages if "incomplete" in text or "matched" in text]


def test_a_plan_is_raised_and_the_rest_of_the_library_stays(tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny.library().path, tmp_path / "copy"))
    opened = ExpertLibrary.open(copy)
    plan_experts(opened, 7)
    again = ExpertLibrary.open(copy)
    assert (opened.planned, again.planned, again.digest) == (7, 7, tiny.library().digest)


def test_numbers_as_text() -> None:
    for numbers in ([0], [5], [0, 1, 2], [0, 2, 3, 9, 10]):
        assert numbers_in(ranges(numbers)) == numbers


# -- threads -------------------------------------------------------------------------------------


def test_a_run_goes_on_with_its_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[int] = []
    estimate = DM.estimate
    monkeypatch.setattr(
        DM, "estimate", lambda *a: used.append(torch.get_num_threads()) or estimate(*a)
    )

    def run(iterations: int, threads: int | None = None) -> Outcome:
        return pipeline.distill(
            tiny.digits(), DM(batch_real=8), pipeline.Untrained(tiny.NETWORK), tmp_path,
            config=dataclasses.replace(tiny.DISTILL, iterations=iterations),
            evaluation=tiny.EVALUATE, resources=Resources(threads=threads),
        )  # fmt: skip

    assert run(2, threads=2).resolved["threads"] == 2
    outcome = run(4)  # here one would be the default
    assert used == [2] * 4
    assert outcome.resolved["threads"] == outcome.last.info["threads"] == 2
    run(4, threads=2)
    with pytest.raises(MismatchError, match=r"threads=2 and this one has 3; leave threads="):
        run(6, threads=3)
    assert torch.get_num_threads() == 1


def test_threads_are_in_the_result_and_free_where_none_were_recorded(tmp_path: Path) -> None:
    words = ["distill", "--experts", str(tiny.library().path), "--out", str(tmp_path)]
    words += [*tiny.DISTILL_WORDS.split(), *tiny.SCORE_WORDS.split(), "--device", "cpu"]
    assert cli.main([*words, "--threads", "2"]) == 0
    result = read_result(tmp_path)
    assert (result["threads"], result["resolved"]["threads"]) == (2, 2)
    assert set(result["resolved"]) == {"compile", "keep", "threads"}
    assert cli.main([*words, "--threads", "1"]) == 2
    path = tmp_path / "checkpoint.safetensors"
    file = open_tensors(path, kind="checkpoint", version=1)
    metadata = file.metadata
    del metadata["resolved"]["threads"]  # as version 0.1 wrote it
    metadata["resolved"]["reason"] = "half of 4.2 GB free"
    tensors = {name: file.read(name) for name in file.names}
    save_tensors(path, tensors, kind="checkpoint", version=1, metadata=metadata)
    assert cli.main([*words, "--threads", "1"]) == 0
    assert read_result(tmp_path)["resolved"].keys() == {"compile", "keep", "threads"}
    assert SyntheticSet.load(tmp_path / "best").info["threads"] == 2
