"""Studies: what is varied, resuming, cells that fail, drift, the figures, the page."""

from __future__ import annotations

import base64
import csv
import dataclasses
import io
import itertools
import json
import math
import re
import shutil
import statistics
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import tiny
from trajmatch import pipeline, studies
from trajmatch.cli import study as command
from trajmatch.cli.frame import Command, dispatch
from trajmatch.config import DataConfig
from trajmatch.errors import FileFormatError, MismatchError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.experts.library import digest
from trajmatch.methods import MTT, Problem
from trajmatch.networks.functional import FunctionalNetwork
from trajmatch.pipeline.recipe import Recipe, load_recipe
from trajmatch.report.figures.heatmap import Heatmap
from trajmatch.report.figures.lines import Lines
from trajmatch.report.pages.study import pooled, study_figure, write_study_report
from trajmatch.runtime.progress import Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import read_json, write_json
from trajmatch.storage.locks import lock
from trajmatch.storage.results import StudyResult, result_from_json
from trajmatch.studies import STUDIES, Study, Subject, Variant, run_study
from trajmatch.studies.accuracy import accuracy
from trajmatch.studies.drift import drift
from trajmatch.studies.study import distilled_with, reach
from trajmatch.synthetic import SyntheticSet

BASE = Recipe(
    data=DataConfig(whitening="normalize"),
    network=tiny.NETWORK,
    experts=tiny.EXPERTS,
    distill=tiny.DISTILL,
    method=tiny.METHOD,
    evaluate=tiny.EVALUATE,
)
DEMO = load_recipe("digits-ipc1")
HOSTILE = "<script>alert('x')</script>"


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def library() -> ExpertLibrary:
    return tiny.library()


def small_study(**changes: object) -> Study:
    """Two step sizes and nothing else."""
    study = Study(
        name="mine",
        purpose="Which?",
        rule=lambda base: "nothing",
        variants=lambda base: [
            Variant(f"a{alpha:g}", distilled_with(base, step_size=alpha), {"alpha": alpha})
            for alpha in (0.01, 0.02)
        ],
        figure="lines",
        axes={"alpha": "alpha_0"},
        measure=accuracy,
    )
    return dataclasses.replace(study, **changes)


def run(out: Path, study: Study | None = None, **more: object) -> dict:
    settings = {"data": tiny.digits(), "experts": tiny.library()} | more
    return run_study(study or small_study(), BASE, out, **settings)


ONE = Resources(workers=1)


# -- whose folder it is --------------------------------------------------------------------------


def test_a_second_study_in_a_folder_is_refused(tmp_path: Path) -> None:
    with (
        lock(tmp_path / ".lock"),
        pytest.raises(SettingError, match=r"another process is writing to .*; wait for it"),
    ):
        run(tmp_path)
    assert not (tmp_path / "log.jsonl").exists()


def test_another_study_is_not_written_over(tmp_path: Path) -> None:
    write_json(
        tmp_path / "result.json", {"command": "study", "study": {"name": "init"}, "scores": []}
    )
    with pytest.raises(SettingError, match=r"a folder of `trajmatch study init`"):
        run(tmp_path)


def test_a_folder_that_is_removed_meanwhile_is_an_error_that_names_it(tmp_path: Path) -> None:
    class Remover(Silent):
        def update(self, task: str, done: int, total: int, **values: object) -> None:
            shutil.rmtree(tmp_path / "study", ignore_errors=True)

    with pytest.raises(FileNotFoundError) as error:
        run(tmp_path / "study", progress=Remover())
    assert tmp_path / "study" in Path(error.value.filename).parents


# -- what is varied ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", STUDIES)
def test_variants_have_a_place_of_their_own_and_folders_that_can_be(name: str) -> None:
    study = STUDIES[name]
    variants = study.variants(DEMO)
    names = [variant.name for variant in variants]
    assert len(set(names)) == len(names) > 1
    assert all(re.fullmatch(r"(?!experts)\w[\w.-]*", one) for one in names)
    places = [tuple(variant.at.items()) for variant in variants]
    assert len(set(places)) == len(places)
    assert set(variants[0].at) <= set(study.axes)
    assert study.rule(DEMO).endswith(".")
    assert name in (command.Flags.__doc__ or "")


def test_ranges_share_one_budget() -> None:
    variants = STUDIES["range"].variants(DEMO)
    assert len(variants) == 12
    for variant in variants:
        distill, method = variant.config.distill, variant.config.method
        assert isinstance(method, MTT)
        assert (method.syn_steps, method.expert_epochs) == tuple(variant.at.values())
        assert distill.iterations * method.syn_steps == 160 * 20
        assert distill.iterations == 4 * distill.eval_every  # as many evaluations as in the demo
        assert reach(variant.config) <= 5 + 4
    demo = distilled_with(DEMO, syn_steps=20, expert_epochs=2)
    assert [v.name for v in variants if v.config == demo] == ["N20-M2"]
    assert "3,200 / N" in STUDIES["range"].rule(DEMO)
    few = STUDIES["range"].variants(distilled_with(DEMO, syn_steps=1, expert_epochs=1))
    assert [v.name for v in few] == ["N1-M1", "N2-M1", "N1-M2", "N2-M2"]


def test_a_study_changes_what_it_is_about_and_nothing_else() -> None:
    def changed(name: str) -> dict[str, dict]:
        differences = studies.running._differences
        return {v.name: differences(DEMO, v.config) for v in STUDIES[name].variants(DEMO)}

    assert changed("init") == {"real": {}, "noise": {"distill.init": "noise"}}
    assert changed("zca") == {"normalize": {}, "zca": {"data.whitening": "zca"}}
    assert changed("experts") == {
        "1-experts": {"experts.experts": 1},
        "2-experts": {"experts.experts": 2},
        "5-experts": {"experts.experts": 5},
        "10-experts": {},
    }
    steps = changed("step-size")
    assert steps["learned-0.01"] == {"distill.step_size": 0.01}  # calibrated in the demo
    assert steps["fixed-0.01"] == {"distill.step_size": 0.01, "distill.lr_lr": 0.0}
    # The rate on log(alpha) is lr_lr / alpha_0^2.
    published = distilled_with(DEMO, lr_lr=1e-6, step_size=0.01)
    variants = {v.name: v.config.method for v in STUDIES["step-size"].variants(published)}
    four = variants["learned-0.04"]
    assert four.lr_lr / four.step_size**2 == pytest.approx(1e-6 / 1e-4)
    with pytest.raises(SettingError, match=r"lr_lr is 0.*give lr_lr="):
        STUDIES["step-size"].variants(distilled_with(DEMO, lr_lr=0.0))


def test_quick_is_cheaper_in_every_way() -> None:
    quick = studies.quick(DEMO)
    assert (quick.distill.iterations, quick.distill.eval_every) == (40, 10)
    assert (quick.experts.experts, quick.evaluate.n, quick.evaluate.epochs) == (5, 3, 100)
    assert quick.method == DEMO.method


# -- the experts ---------------------------------------------------------------------------------


def test_the_first_experts_of_a_library(library: ExpertLibrary) -> None:
    one = library.first(1)
    assert (one.experts, one.trajectory_count, one.settings.experts) == ([0], 1, 1)
    assert (library.experts, library.settings.experts) == ([0, 1], 2)
    assert torch.equal(one.segment(0, 0, 1)[1], library.segment(0, 0, 1)[1])
    with pytest.raises(SettingError, match="no expert 1; it has 0"):
        one.segment(1, 0, 1)
    assert one.summary()["n"] == 1
    problem = Problem.of(tiny.digits(), one, torch.device("cpu"))
    assert {tiny.METHOD.segment_at(problem, i, 0)[0] for i in range(20)} == {0}
    for count in (0, 3):
        with pytest.raises(SettingError, match=f"holds 2 experts, not {count}; use 1 to 2"):
            library.first(count)


@pytest.mark.slow
def test_experts_are_shared_where_they_are_alike_and_long_enough_for_all(tmp_path: Path) -> None:
    base = dataclasses.replace(BASE, experts=dataclasses.replace(tiny.EXPERTS, epochs=2))
    study = dataclasses.replace(
        STUDIES["zca"],
        variants=lambda base: [
            *STUDIES["zca"].variants(base),
            Variant("far", distilled_with(base, expert_epochs=2), {"whitening": "far"}),
        ],
    )
    observer = Observer()
    result = run_study(study, base, tmp_path, data=tiny.digits(), resources=ONE, progress=observer)
    # Two experts of three epochs, then two of two for the other whitening.
    assert [(done, total) for done, total, *_ in observer.epochs] == [
        *((i, 6) for i in range(1, 7)), *((i, 4) for i in range(1, 5)),
    ]  # fmt: skip
    found = {path.parent.name for path in tmp_path.glob("*/library.json")}
    assert found == {"experts", "experts-zca"}
    own = ExpertLibrary.open(tmp_path / "experts")
    # max_start_epoch 2 - 1 + expert_epochs 2 of the variant that reaches farthest
    assert (own.epochs, own.whitening.name) == (3, "normalize")
    other = ExpertLibrary.open(tmp_path / "experts-zca")
    assert (other.epochs, other.whitening.name) == (2, "zca")
    made = {v: SyntheticSet.load(tmp_path / v / "seed0" / "best") for v in ("normalize", "zca")}
    assert {v: one.whitening.name for v, one in made.items()} == {v: v for v in made}
    assert ["error" in cell for cell in result["cells"]] == [False] * 3


@pytest.mark.slow
def test_a_library_that_is_there_stands_in_for_the_base(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    bare = Recipe(distill=tiny.DISTILL, method=tiny.METHOD, evaluate=tiny.EVALUATE)
    data = tiny.digits()
    result = run_study(small_study(), bare, tmp_path, data=data, experts=library.path)
    assert not (tmp_path / "experts").exists()
    assert result["settings"]["data"]["whitening"] == "normalize"
    assert result["settings"]["experts"] == dataclasses.asdict(tiny.EXPERTS)
    zca = dataclasses.replace(BASE, data=DataConfig(whitening="zca"))
    with pytest.raises(MismatchError, match="whitening 'normalize' and this asks for 'zca'"):
        run_study(small_study(), zca, tmp_path, data=data, experts=library)


def test_experts_like_imported_ones_cannot_be_trained(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    copy = Path(shutil.copytree(library.path, tmp_path / "library"))
    document = read_json(copy / "library.json")
    document["made"] |= {"imported": "a buffer", "seed": None}
    document["digest"] = digest(document["made"])
    write_json(copy / "library.json", document)
    with pytest.raises(SettingError, match=r"were imported \(a buffer\).*leave experts= out"):
        run(tmp_path / "out", STUDIES["zca"], experts=copy)


# -- running -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    """A study of two seeds. Not to be written to."""
    out = tmp_path_factory.mktemp("studies") / "out"
    return out, run(out, seeds=2)


def test_every_cell_is_a_run_and_part_of_the_result(done: tuple[Path, dict]) -> None:
    out, result = done
    assert read_result(out) == result
    assert [(cell["variant"], cell["seed"]) for cell in result["cells"]] == [
        ("a0.01", 0), ("a0.01", 1), ("a0.02", 0), ("a0.02", 1),
    ]  # fmt: skip
    for cell in result["cells"]:
        folder = out / cell["variant"] / f"seed{cell['seed']}"
        best, own = SyntheticSet.load(folder / "best"), read_result(folder)
        assert best.info["seed"] == own["seed"] == cell["seed"]
        assert own["settings"]["distill"]["step_size"] == cell["at"]["alpha"]
        (again,) = pipeline.evaluate(
            best, tiny.digits(), config=tiny.EVALUATE, split="test", seed=cell["seed"]
        )
        assert (cell["mean"], cell["sd"], cell["n"]) == (again.mean, again.sd, 2)
        assert cell["values"] == list(again.values)
        assert cell["validation"] == own["best_validation"]["mean"]
        assert own["scores"][0]["mean"] == cell["mean"]
    assert [cell["settings"] for cell in result["cells"][1:3]] == [{}, {"distill.step_size": 0.02}]
    assert result["study"]["base"] == ["a0.01"]
    score = result["scores"][3]
    assert (score["variant"], score["seed"], score["split"]) == ("a0.02", 1, "test")
    assert score.keys() >= {"method", "model", "ipc", "n", "mean", "sd", "protocol"}


class Observer(Silent):
    """Keeps what a study reports."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at = kill_at
        self.cells: list[dict] = []
        self.iterations: list[tuple[int, int]] = []
        self.losses: list[float] = []
        self.epochs: list[tuple[int, int, int, int]] = []

    def update(self, task: str, done: int, total: int, **values: float) -> None:
        if task == "experts":
            self.epochs.append((done, total, int(values["expert"]), int(values["epoch"])))
        else:
            assert task == "iterations"
            self.iterations.append((done, total))
            self.losses.append(values["loss"])
            if done == self.kill_at:
                raise KeyboardInterrupt

    def event(self, name: str, **values: object) -> None:
        if name == "cell":
            self.cells.append(values)


def without_clock(result: dict) -> dict:
    """Without what differs from one time to the next."""
    return {k: v for k, v in result.items() if k not in ("seconds", "started", "peak_memory_mb")}


def test_a_study_that_is_done_does_nothing_again(
    done: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = done
    copy = Path(shutil.copytree(out, tmp_path / "copy"))

    def no_work(*given: object, **more: object) -> None:
        raise AssertionError("work was done again")

    monkeypatch.setattr(pipeline, "distill", no_work)
    monkeypatch.setattr(pipeline, "evaluate", no_work)
    observer = Observer()
    again = run(copy, seeds=2, progress=observer)
    assert without_clock(again) == without_clock(first)
    assert observer.cells == first["cells"]
    assert observer.iterations == []


@pytest.mark.slow
def test_what_determines_a_cell_is_measured_again_when_it_changes(
    done: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = Path(shutil.copytree(done[0], tmp_path / "copy"))
    calls: list[object] = []
    evaluate = pipeline.evaluate
    monkeypatch.setattr(pipeline, "evaluate", lambda *a, **k: calls.append(1) or evaluate(*a, **k))
    longer = distilled_with(BASE, iterations=5)
    data, library = tiny.digits(), tiny.library()
    run_study(small_study(), longer, copy, data=data, experts=library)
    assert len(calls) == 2
    assert read_result(copy / "a0.01" / "seed0")["last_iteration"] == 5
    # A cell of more iterations than are asked for is not passed off as one of fewer.
    with pytest.raises(SettingError, match="holds a run of 5 iterations and this study gives it 4"):
        run(copy)


@pytest.mark.parametrize("damage", ["", '{"key": 1}', "[]"])
def test_a_damaged_memory_of_a_cell_is_measured_again(
    done: tuple[Path, dict], tmp_path: Path, damage: str
) -> None:
    out, first = done
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    (copy / "a0.02" / "seed1" / "cell.json").write_text(damage)
    assert run(copy, seeds=2)["cells"] == first["cells"]


@pytest.mark.parametrize(
    ("change", "digest", "said"),
    [
        ({"mean": 77.5}, True, "was altered"),
        ({"mean": 777.5}, False, r"rows[0].mean is 777.5"),
        ({"making_seconds": HOSTILE}, False, 'rows[0].making_seconds is "<script>'),
    ],
)
def test_an_altered_cell_is_measured_again(
    done: tuple[Path, dict],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    change: dict,
    digest: bool,
    said: str,
) -> None:
    out, first = done
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    path = copy / "a0.02" / "seed1" / "cell.json"
    stored = read_json(path)
    stored["rows"][0] |= change
    if not digest:  # as version 0.1 wrote it
        del stored["digest"]
    write_json(path, stored)
    memory = path.with_name("memory.json")
    memory.write_text('{"bytes": "all"}')
    again = run(copy, seeds=2)["cells"]
    assert again[-1].pop("making_bytes") is None  # nothing was distilled now
    assert again == [*first["cells"][:-1], {**again[-1]}]
    assert again[-1]["values"] == first["cells"][-1]["values"]
    assert said in caplog.text
    assert "the cell is measured again" in caplog.text
    assert "bytes is 'all' where a whole number" in caplog.text


@pytest.mark.slow
def test_a_killed_study_ends_as_if_it_had_not_been(done: tuple[Path, dict], tmp_path: Path) -> None:
    first, second = Observer(kill_at=11), Observer()  # in the middle of the third of four cells
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, seeds=2, progress=first)
    assert first.iterations == [(i, 16) for i in range(1, 12)]
    assert not (tmp_path / "result.json").exists()
    again = run(tmp_path, seeds=2, progress=second)
    found, wanted = (
        [{k: v for k, v in cell.items() if not k.startswith("making_")} for cell in one["cells"]]
        for one in (again, done[1])
    )
    assert found == wanted
    assert second.iterations == [(i, 16) for i in (12, 13, 14, 15, 16)]
    log = read_log(tmp_path / "a0.01" / "seed0" / "log.jsonl")
    assert first.losses[:4] == [line["loss"] for line in log if "loss" in line]


def breaking(study: Study) -> Study:
    """The study with a variant that reaches beyond the experts."""
    far = Variant("far", distilled_with(BASE, expert_epochs=3), {"alpha": 9.0})
    return dataclasses.replace(study, variants=lambda base: [far, *small_study().variants(base)])


@pytest.mark.slow
def test_a_cell_that_fails_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    result = run(tmp_path, breaking(small_study()))
    failed, *others = result["cells"]
    assert failed["variant"] == "far"
    assert "segments reach epoch 4" in failed["error"]
    assert failed.keys() == {"variant", "at", "settings", "seed", "error"}
    assert [cell["n"] for cell in others] == [2, 2]
    assert len(result["scores"]) == 2
    pytest.importorskip("jinja2")
    page = write_study_report(tmp_path).read_text()
    assert "far, seed 0: segments reach epoch 4" in page


def test_a_study_without_a_single_number_is_refused(tmp_path: Path) -> None:
    study = breaking(small_study())
    far = dataclasses.replace(study, variants=lambda base: study.variants(base)[:1])
    with pytest.raises(SettingError, match=r"none of 2 cells .* far, seed 0: segments reach epoch"):
        run(tmp_path, far, seeds=2)


def test_what_is_wrong_with_the_base_is_refused_first(tmp_path: Path) -> None:
    for change, said in (({"ipc": 5000}, "ipc is 5000"), ({"batch_syn": 11}, "batch_syn is 11")):
        base = distilled_with(BASE, **change)
        with pytest.raises(SettingError, match=said):
            run_study(small_study(), base, tmp_path, data=tiny.digits(), resources=ONE)
    with pytest.raises(SettingError, match="seeds is 0"):
        run(tmp_path, seeds=0)
    assert list(tmp_path.iterdir()) == []


def test_a_bug_is_not_taken_for_a_cell_that_failed(tmp_path: Path) -> None:
    def broken(subject: Subject) -> list[dict]:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run(tmp_path, small_study(measure=broken))


# -- drift ---------------------------------------------------------------------------------------


def subject(images: SyntheticSet, library: ExpertLibrary, **changes: object) -> Subject:
    """To measure on the second of two experts, without augmentation."""
    base = distilled_with(BASE, **{"augment": None, "max_start_epoch": 2} | changes)
    config = dataclasses.replace(base, experts=dataclasses.replace(base.experts, experts=1))
    return Subject(images, library, tiny.digits(), config, 0, "cpu")


def chosen(library: ExpertLibrary, ipc: int = 1) -> SyntheticSet:
    return pipeline.select_coreset("random", tiny.digits(), ipc, experts=library, seed=3)


def test_drift_is_the_distance_at_the_nearest_step(library: ExpertLibrary) -> None:
    small = dataclasses.replace(chosen(library), step_size=0.3)
    rows = drift(subject(small, library))
    assert [row["at"] for row in rows] == [{"epochs": 1}, {"epochs": 2}]
    network = FunctionalNetwork(library.spec.build(seed=0))
    found: dict[int, list[tuple[float, int]]] = {1: [], 2: []}
    for start in (0, 1):
        trajectory = library.trajectory(1)
        vector = trajectory.row(start)
        walked = [vector]
        for _ in range(2 * 3 * 2):  # twice N / M steps an epoch, over the longest stretch
            leaf = vector.clone().requires_grad_()
            F.cross_entropy(network(leaf, small.images), small.labels).backward()
            vector = vector - 0.3 * leaf.grad
            walked.append(vector)
        for stretch in found:
            target = trajectory.row(start + stretch)
            length = (trajectory.row(start) - target).square().sum()
            distances = [float((w - target).square().sum() / length) for w in walked]
            least = min(range(len(walked)), key=lambda k: distances[k])
            found[stretch].append((distances[least], least))
    for row in rows:
        expected = found[row["at"]["epochs"]]
        assert row["values"] == pytest.approx([d for d, _ in expected], rel=1e-4)
        assert row["mean"] == pytest.approx(statistics.fmean(d for d, _ in expected), rel=1e-4)
        assert row["sd"] == pytest.approx(statistics.stdev(d for d, _ in expected), rel=1e-3)
        assert (row["n"], row["step_size"]) == (2, 0.3)
        assert row["steps"] == statistics.fmean(step for _, step in expected)


def test_drift_without_a_step_size_of_the_sets_own(library: ExpertLibrary) -> None:
    rows = drift(subject(chosen(library), library, step_size=0.07))
    same = dataclasses.replace(chosen(library), step_size=0.07)
    assert rows == drift(subject(same, library, step_size=0.5))
    assert rows[0]["step_size"] == 0.07


def test_a_student_that_diverges_was_nearest_before(library: ExpertLibrary) -> None:
    wild = dataclasses.replace(chosen(library), step_size=1e30)
    rows = drift(subject(wild, library))
    assert [(row["values"], row["steps"]) for row in rows] == [([1.0, 1.0], 0.0)] * 2


def test_drift_walks_batches_and_augments_from_the_seed(library: ExpertLibrary) -> None:
    small = chosen(library, ipc=2)
    batched = subject(small, library, batch_syn=5, augment="crop")
    assert drift(batched) == drift(batched)
    assert drift(batched) != drift(dataclasses.replace(batched, seed=1))
    assert drift(subject(small, library, batch_syn=5)) != drift(subject(small, library))
    # A set as small as a batch goes whole.
    assert drift(subject(small, library, batch_syn=50)) == drift(subject(small, library))


def test_drift_refuses_what_does_not_belong_together(library: ExpertLibrary) -> None:
    small = chosen(library)
    other = pipeline.select_coreset("random", tiny.digits(), 1, pipeline.Untrained(whitening="zca"))
    with pytest.raises(MismatchError, match=r"whitening \(zca, .*experts= it was distilled with"):
        drift(subject(other, library))
    renamed = dataclasses.replace(small, classes=tuple("abcdefghij"))
    with pytest.raises(MismatchError, match="sets distilled from the same data="):
        drift(subject(renamed, library))
    with pytest.raises(SettingError, match=r"start at up to epoch 3 .* 3 epochs"):
        drift(subject(small, library, max_start_epoch=4))


@pytest.mark.slow
def test_a_drift_study_measures_on_experts_it_did_not_match(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    matched: list[int] = []
    segment = ExpertLibrary.segment

    def spy(
        self: ExpertLibrary, expert: int, epoch: int, length: int, *more: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if length == tiny.METHOD.expert_epochs:  # not features of its last epoch for herding
            matched.append(expert)
        return segment(self, expert, epoch, length, *more)

    monkeypatch.setattr(ExpertLibrary, "segment", spy)
    result = run(tmp_path, STUDIES["drift"])
    assert set(matched) == {0}
    cells = result["cells"]
    assert {cell["at"]["set"] for cell in cells} == {"mtt", "dsa", "random", "herding"}
    assert [cell["at"]["epochs"] for cell in cells] == [1, 2] * 4
    assert all(cell["values"] for cell in cells)
    small = SyntheticSet.load(tmp_path / "mtt" / "seed0" / "best")
    assert small.info["experts"]["experts"] == 1
    expected = drift(
        dataclasses.replace(subject(small, tiny.library()), config=STUDIES["drift"].variants(
            dataclasses.replace(BASE, experts=tiny.library().settings))[0].config)
    )  # fmt: skip
    assert [cell["values"] for cell in cells[:2]] == [row["values"] for row in expected]
    assert result["scores"] == []


@pytest.mark.slow
def test_the_drift_of_sets_made_before(tmp_path: Path, library: ExpertLibrary) -> None:
    chosen(library).save(tmp_path / "one" / "best")
    chosen(library).save(tmp_path / "two")
    variants = studies.of_sets(f"{tmp_path}/one/best, mine={tmp_path}/two")
    study = dataclasses.replace(STUDIES["drift"], variants=variants)
    cells = run(tmp_path / "out", study)["cells"]
    assert [cell["variant"] for cell in cells] == ["one", "one", "mine", "mine"]
    assert cells[0]["values"] == cells[2]["values"]
    # The set is read anew each time: it may have been made anew.
    dataclasses.replace(chosen(library), step_size=0.5).save(tmp_path / "two")
    assert run(tmp_path / "out", study)["cells"][2]["values"] != cells[2]["values"]
    gone = dataclasses.replace(study, variants=studies.of_sets(f"{tmp_path}/three"))
    with pytest.raises(FileFormatError, match="not a distilled set"):
        run_study(gone, BASE, tmp_path / "new", data=tiny.digits(), resources=ONE)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("a,b/a", "'a' is there twice; write NAME=b/a"),
        ("experts=a", "'experts' cannot name a row"),
        ("x/y=a", "'x/y' cannot name a row"),
        (" , ", "give folders of sets"),
    ],
)
def test_names_of_sets_that_cannot_be(words: str, said: str) -> None:
    with pytest.raises(SettingError, match=said):
        studies.of_sets(words)


def test_drift_needs_an_expert_to_hold_out() -> None:
    base = dataclasses.replace(DEMO, experts=dataclasses.replace(DEMO.experts, experts=1))
    with pytest.raises(SettingError, match=r"there is 1 expert.*sets="):
        STUDIES["drift"].variants(base)
    counts = {}
    for count in (2, 10, 200):
        base = dataclasses.replace(DEMO, experts=dataclasses.replace(DEMO.experts, experts=count))
        counts[count] = STUDIES["drift"].variants(base)[0].config.experts.experts
    assert counts == {2: 1, 10: 8, 200: 195}


# -- numbers and figures -------------------------------------------------------------------------


def cell(variant: str, mean: float | None, seed: int = 0, **at: object) -> dict:
    known = {"variant": variant, "at": at, "settings": {}, "seed": seed}
    if mean is None:
        return {**known, "error": "it broke"}
    values = [mean - 1.0, mean + 1.0]
    return {**known, "mean": mean, "sd": statistics.stdev(values), "n": 2, "values": values}


def result_of(
    cells: list[dict], *, figure: str, axes: dict, seeds: int = 1, **more: object
) -> dict:
    study = {
        "name": "mine", "question": "Which?", "rule": "All else is fixed.", "figure": figure,
        "axes": axes, "measured": "test accuracy, %", "counted": "fresh networks", "base": ["b"],
    }  # fmt: skip
    settings = {"study": "mine", "seeds": seeds, "distill": {"ipc": 1}}
    return {
        "format": 1, "command": "study", "settings": settings, "cells": cells,
        "study": study | more, "data": {"name": "digits"}, "network": "ConvNet", "seed": 0,
        "scores": [],
    }  # fmt: skip


GRID = {"x": "N, steps", "y": "M, epochs"}


def study_of(result: dict) -> StudyResult:
    found = result_from_json(result)
    assert isinstance(found, StudyResult)
    return found


def test_one_seed_keeps_the_spread_of_its_networks() -> None:
    (row,) = pooled(study_of(result_of([cell("a", 50.0, x=1)], figure="lines", axes={"x": "N"})))
    sample = row.sample
    assert (sample.mean, sample.n, sample.values) == (50.0, 2, (49.0, 51.0))
    assert sample.sd == pytest.approx(math.sqrt(2))


def test_several_seeds_are_pooled_by_their_means() -> None:
    cells = [cell("a", 50.0, 0, x=1), cell("a", 56.0, 1, x=1), cell("a", None, 2, x=1)]
    (row,) = pooled(study_of(result_of(cells, figure="lines", axes={"x": "N"}, seeds=3)))
    assert row.sample.values == (50.0, 56.0)
    assert (row.sample.mean, row.sample.n, row.failed) == (53.0, 2, 1)
    assert row.sample.sd == pytest.approx(statistics.stdev([50.0, 56.0]))
    # One seed that is left of three has no spread to show; its networks' is of another kind.
    (row,) = pooled(study_of(result_of(cells[1:], figure="lines", axes={"x": "N"}, seeds=3)))
    assert (row.sample.mean, row.sample.sd, row.sample.n) == (56.0, None, 1)


def test_a_measure_of_several_places_that_failed_for_one_seed() -> None:
    cells = [cell("a", 0.5, 0, s="a", t=1), cell("a", 0.6, 0, s="a", t=2)]
    cells.append(cell("a", None, 1, s="a"))
    rows = pooled(study_of(result_of(cells, figure="lines", axes={"t": "t", "s": "s"}, seeds=2)))
    found = [(row.at["t"], row.mean, row.failed) for row in rows]
    assert found == [(1, 0.5, 1), (2, 0.6, 1)]


@pytest.fixture
def grid() -> dict:
    cells = [
        cell("a", 80.0, x=20, y=1), cell("b", 90.0, x=5, y=1), cell("c", None, x=20, y=4),
        cell("d", 85.0, x=5, y=4),
    ]  # fmt: skip
    return result_of(cells, figure="grid", axes=GRID)


def texts(svg: str) -> list[str]:
    return [node.text for node in ElementTree.fromstring(svg).iter("text")]


def test_a_heat_map_says_its_numbers_where_they_belong(grid: dict) -> None:
    figure = study_figure(study_of(grid))
    assert isinstance(figure, Heatmap)
    root = ElementTree.fromstring(figure.svg())
    said = texts(figure.svg())
    assert {"M, epochs", "1", "4", "5", "20", "N, steps"} <= set(said)
    assert said.count("±\N{NO-BREAK SPACE}1.4") == 3
    cells = {}
    for group in root.iter("g"):
        if group.get("class") in ("heat", "heat base"):
            title, box = group.find("title").text, group.find("path")
            x, y = map(float, re.findall(r"[\d.]+", box.get("d"))[:2])
            shade = re.search(r"fill-opacity:([\d.]+)", box.get("style"))
            value = title.partition(": ")[2].partition("\N{NO-BREAK SPACE}")[0]
            cells[value] = (x, y, float(shade[1]) if shade else 0.0)
            assert (group.get("class") == "heat base") == (value == "90.0")
    assert cells.keys() == {"80.0", "85.0", "90.0", "failed"} <= set(said)
    assert cells["90.0"][0] == cells["85.0"][0] < cells["80.0"][0] == cells["failed"][0]
    assert cells["90.0"][1] == cells["80.0"][1] < cells["85.0"][1] == cells["failed"][1]
    assert cells["failed"][2] < cells["80.0"][2] < cells["85.0"][2] < cells["90.0"][2]
    assert "Highest 90.0" in figure.summary()
    assert "lowest 80.0" in figure.summary()
    assert "at N\N{NO-BREAK SPACE}5, M\N{NO-BREAK SPACE}1" in figure.summary()
    assert figure.frame()[1] == {
        "x": 5, "y": 1, "mean": 90.0, "sd": pytest.approx(2**0.5), "n": 2, "failed": 0,
        "values": [89.0, 91.0],
    }  # fmt: skip


def test_a_heat_map_of_equal_values_is_drawn(grid: dict) -> None:
    grid["cells"] = [cell("a", 50.0, x=1, y=1), cell("b", 50.0, x=2, y=1)]
    assert texts(study_figure(study_of(grid)).svg()).count("50.0") == 2


def dots(figure: Lines) -> list[tuple[float, float]]:
    """Where the points lie, in their order."""
    groups = ElementTree.fromstring(figure.svg()).iter("g")
    found = [group for group in groups if group.get("class") == "dot"]
    circles = (group.find("circle") for group in found)
    moved = (group.find("path") for group in found)
    return [
        (float(c.get("cx")), float(c.get("cy")))
        if c is not None
        else tuple(map(float, re.findall(r"[\d.]+", m.get("transform"))))
        for c, m in zip(circles, moved, strict=True)
    ]


def lines(cells: list[dict], **more: object) -> Lines:
    figure = study_figure(study_of(result_of(cells, figure="lines", **more)))
    assert isinstance(figure, Lines)
    return figure


def test_lines_go_through_their_values_on_a_logarithmic_axis() -> None:
    cells = [cell("s", float(10 * i), x=2**i, s="one") for i in (1, 2, 3)]
    cells += [cell("t", 5.0, x=2, s="two"), cell("u", None, x=4, s="two")]
    figure = lines(cells, axes={"x": "N", "s": "set"})
    assert {"one", "two"} <= set(texts(figure.svg()))
    (x1, y1), (x2, y2), (x3, y3), (x4, _) = dots(figure)
    assert x2 - x1 == pytest.approx(x3 - x2, abs=0.2)
    assert y1 - y2 == pytest.approx(y2 - y3, abs=0.2)
    assert y3 < y2 < y1
    assert x4 == x1
    assert [(row["series"], row["x"], row["mean"]) for row in figure.frame()] == [
        ("one", 2, 10.0), ("one", 4, 20.0), ("one", 8, 30.0), ("two", 2, 5.0),
    ]  # fmt: skip

    alone = lines(cells[:1], axes={"x": "N"})
    assert len(dots(alone)) == 1
    assert "at N\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2." in alone.summary()


def test_distances_are_shown_from_zero_with_the_start_as_a_level() -> None:
    cells = [cell("s", 0.4, x=1, s="one"), cell("s", 0.3, x=2, s="one")]
    for one in cells:
        one |= {"sd": 0.05}
    figure = lines(cells, axes={"x": "t", "s": "set"}, measured="squared distance")
    assert figure.level == (1.0, "never nearer than at the start")
    assert "never nearer than at the start" in texts(figure.svg())
    assert "one: 0.4" in figure.summary()


def test_labels_of_lines_do_not_overlap() -> None:
    cells = [cell(name, 50.0 + i / 10, x=k, s=name)
             for i, name in enumerate("abc") for k in (1, 2)]  # fmt: skip
    figure = lines(cells, axes={"x": "N", "s": "set"})
    root = ElementTree.fromstring(figure.svg())
    heights = sorted(float(t.get("y")) for t in root.iter("text") if t.text in {"a", "b", "c"})
    assert len(heights) == 3
    assert min(b - a for a, b in itertools.pairwise(heights)) >= 11.9


def test_numbers_behind_a_figure_come_as_csv(grid: dict) -> None:
    url = study_figure(study_of(grid)).csv_url()
    text = base64.b64decode(url.partition(",")[2]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["y"], row["mean"]) for row in rows] == [
        ("1", "80"), ("1", "90"), ("4", ""), ("4", "85"),
    ]  # fmt: skip


@pytest.mark.parametrize("kind", ["grid", "lines", "bars"])
def test_figures_for_a_paper(grid: dict, kind: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    grid["study"]["figure"] = kind
    study_figure(study_of(grid)).plot().savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 1000


def test_only_a_study_is_drawn_as_one(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"format": 1, "command": "distill", "settings": {}})
    with pytest.raises(FileFormatError, match=r"of `trajmatch distill`, not of a study; give"):
        write_study_report(tmp_path)


# -- the page ------------------------------------------------------------------------------------


def page_of(result: dict, folder: Path) -> str:
    pytest.importorskip("jinja2")
    write_json(folder / "result.json", result)
    return write_study_report(folder).read_text(encoding="utf-8")


def test_a_page_is_whole_and_says_what_its_numbers_are(grid: dict, tmp_path: Path) -> None:
    page = page_of(grid, tmp_path)
    assert "over n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}2 fresh networks of one seed" in page
    assert "All else is fixed." in page
    assert "c, seed 0: it broke" in page
    assert "Outlined: as in the settings." in page
    assert "to compare, and not to choose settings by" in page
    links = re.findall(r'(?:href|src)="([^"]*)"', page)
    assert all(link.startswith("data:") for link in links)
    assert "http" not in page.replace("http-equiv", "")
    assert "<script" not in page
    assert "default-src 'none'" in page
    again = write_study_report(tmp_path, tmp_path / "other.html")
    assert again.read_text(encoding="utf-8") == page

    cells = [cell("a", 50.0, seed, x=1, y=1) for seed in (0, 1, 2)]
    page = page_of(result_of(cells, figure="grid", axes=GRID, seeds=3), tmp_path)
    assert "\N{NO-BREAK SPACE}3 seeds, each the mean of 2 fresh networks" in page


@pytest.mark.parametrize("kind", ["grid", "lines", "bars"])
def test_a_hostile_name_is_only_text(grid: dict, kind: str, tmp_path: Path) -> None:
    grid["study"] |= {"figure": kind, "question": HOSTILE, "rule": HOSTILE, "axes": {
        "x": HOSTILE, "y": HOSTILE + "2"}}  # fmt: skip
    for number, one in enumerate(grid["cells"]):
        one["variant"] = f"{HOSTILE}{number}"
        one["at"]["y"] = f"{HOSTILE}{one['at']['y']}"
    grid["cells"][2]["error"] = HOSTILE
    page = page_of(grid, tmp_path)
    assert "<script" not in page
    assert "&lt;script&gt;" in page


def test_the_look_is_that_of_the_other_pages() -> None:
    """One style sheet: what a run's page says of a class, a study's page says too."""
    templates = Path(command.__file__).parents[1] / "report" / "templates"
    style = (templates / "style.css").read_text(encoding="utf-8")
    page = (templates / "page.html.j2").read_text(encoding="utf-8")
    assert 'include "style.css"' in page or style.strip() in page


# -- the command ---------------------------------------------------------------------------------

COMMANDS = {"study": Command(command.Flags, command.run, "run it", "trajmatch study range")}
TINY = (
    f"{tiny.NETWORK_WORDS} {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS} --train.experts 2 "
    "--train.epochs 3 --train.batch 128 --train.lr 0.05 --workers 1 --device cpu"
)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("TRAJMATCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


Line = Callable[[str], list[str]]


@pytest.fixture
def succeed(here: Path, capsys: pytest.CaptureFixture[str]) -> Line:
    def carry_out(line: str) -> list[str]:
        capsys.readouterr()
        assert dispatch(COMMANDS, line.split()) == 0, capsys.readouterr().err
        return capsys.readouterr().out.splitlines()

    return carry_out


@pytest.mark.slow
def test_a_study_from_its_words_to_its_page(succeed: Line) -> None:
    pytest.importorskip("jinja2")
    said = succeed(f"study range {TINY}")
    out = Path("runs/study-range")
    assert "iterations = 12 / N" in said[2]
    assert said[-1].endswith("the page: runs/study-range/report.html")
    assert sum("(n=2)" in line for line in said) == 6
    result = read_result(out)
    assert (result["command"], result["settings"]["study"]) == ("study", "range")
    assert {c["variant"] for c in result["cells"]} == {
        f"N{n}-M{m}" for n in (1, 3, 6) for m in (1, 2)
    }
    # M = 2 from start epoch 1 needs epoch 3; the budget is 4 iterations of 3 steps.
    assert result["library"]["epochs"] == 3
    log = read_log(out / "log.jsonl")
    assert [line["variant"] for line in log if line.get("event") == "cell"] == [
        c["variant"] for c in result["cells"]
    ]
    assert json.loads((out / "N6-M1" / "seed0" / "cell.json").read_text())["rows"]


@pytest.mark.slow
def test_the_settings_of_a_study(succeed: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Recipe, dict]] = []

    class Stop(SettingError):
        pass

    def stop(study: Study, base: Recipe, out: Path, **more: object) -> dict:
        asked.append((base, {"study": study, "out": out, **more}))
        raise Stop("stop")

    monkeypatch.setattr(studies, "run_study", stop)
    library = tiny.library().path
    Path("mine.toml").write_text("seed = 4\n[distill]\niterations = 77\n")
    for line in (
        "study init",
        "study init --quick --evaluate.n 9 --seed 7",
        f"study init --experts {library} --seeds 3",
        "study init --config mine.toml --out there",
        "study drift --sets a,b",
    ):
        assert dispatch(COMMANDS, line.split()) == 2
    demo, quick, given, mine, sets = asked
    assert demo[0] == dataclasses.replace(DEMO, about="")
    assert demo[1]["out"] == Path("runs/study-init")
    assert (quick[0].distill.iterations, quick[0].evaluate.n, quick[0].seed) == (40, 9, 7)
    assert (given[0].network.width, given[0].data.whitening) == (None, None)
    assert (given[1]["experts"], given[1]["seeds"]) == (library, 3)
    assert (mine[0].distill.iterations, mine[0].seed, mine[0].name) == (77, 4, "mine")
    assert mine[1]["out"] == Path("there")
    assert [v.source for v in sets[1]["study"].variants(DEMO)] == ["a", "b"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("study", ["NAME is missing", "trajmatch study range"]),
        ("study rang", ["unknown study 'rang'", "did you mean 'range'?"]),
        ("study range --sets a", ["--sets is for drift"]),
        ("study drift --sets a,b/a", ["'a' is there twice"]),
        ("study drift --sets nowhere", ["nowhere"]),
        ("study range --seeds 0", ["seeds is 0"]),
        ("study range --epochs 3", ["unknown option --epochs", "epochs?"]),
        ("study range --config cifar10-ipc3", ["unknown recipe 'cifar10-ipc3'"]),
        ("study range --experts nowhere", ["no expert library in nowhere"]),
        ("study range --data photos", ["unknown data 'photos'"]),
        ("study step-size --lr-lr 0", ["lr_lr is 0"]),
        ("study range --method dm", ["varies syn_steps", "dm does not have", "--method mtt"]),
        ("study init --method dm --syn-steps 3", ["--syn-steps is a setting of mtt"]),
        ("study init --method dn", ["unknown method 'dn'"]),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    line: str, words: list[str], here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert dispatch(COMMANDS, line.split()) == 2
    said = capsys.readouterr().err
    assert said.startswith("trajmatch study: ")
    assert said.count("\n") == 1
    assert [word for word in words if word not in said] == [], said
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_without_what_draws_the_page_the_work_is_not_lost(
    succeed: Line, monkeypatch: pytest.MonkeyPatch
) -> None:
    from trajmatch.errors import MissingExtraError

    def no_page(*given: object) -> Path:
        raise MissingExtraError("the page", "report")

    monkeypatch.setattr("trajmatch.report.pages.study.write_study_report", no_page)
    said = succeed(f"study experts {TINY} --out out")
    assert "no page: the page needs an optional dependency" in said[-1]
    assert len(read_result(Path("out"))["cells"]) == 2
