"""The verbs put together: a whole run, the same again without work, and what is refused first."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import pipeline
from trajmatch.config import Adam, Cosine, DataConfig, EvaluateConfig, NetworkConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import to_float
from trajmatch.errors import MismatchError, SettingError
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import DD, DM, LD, MTT, Conditions, Method, coresets
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.pipeline.checks import baselines_left_out
from trajmatch.pipeline.recipe import Recipe
from trajmatch.runtime.progress import Silent
from trajmatch.runtime.resources import Resources
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors, save_tensors
from trajmatch.storage.locks import lock
from trajmatch.synthetic import SyntheticSet

distilling = importlib.import_module("trajmatch.pipeline.distill")  # not the function

ONE = Resources(workers=1)
RUN = Recipe(
    data=DataConfig(whitening="normalize"),
    network=tiny.NETWORK,
    experts=tiny.EXPERTS,
    distill=tiny.DISTILL,
    method=tiny.METHOD,
    evaluate=tiny.EVALUATE,
)


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return tiny.digits()


@pytest.fixture(scope="module")
def library() -> ExpertLibrary:
    return tiny.library()


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    out = tmp_path_factory.mktemp("pipeline") / "run"
    return out, pipeline.run(RUN, out, resources=ONE)


def distill(
    out: Path, library: ExpertLibrary, *, method: Method = tiny.METHOD, **changes: object
) -> pipeline.Outcome:
    """On digits with the tiny settings but for `changes` of the outer loop's."""
    return pipeline.distill(
        tiny.digits(),
        method,
        library,
        out,
        config=dataclasses.replace(tiny.DISTILL, **changes),
        evaluation=tiny.EVALUATE,
    )


def mtt(**changes: object) -> MTT:
    return dataclasses.replace(tiny.METHOD, **changes)


def begun(library: ExpertLibrary, method: Method = tiny.METHOD, seed: int = 0, **changes: object):
    """What a distillation of digits begins with."""
    config = dataclasses.replace(tiny.DISTILL, **changes)
    return pipeline.initial_parameters(tiny.digits(), library.whitening, method, config, seed=seed)


# -- run -----------------------------------------------------------------------------------------


def test_a_run_says_what_it_found(ran: tuple[Path, dict], digits: ImageDataset) -> None:
    out, result = ran
    assert read_result(out) == result
    assert [score["method"] for score in result["scores"]] == [
        "mtt", "random", "herding", "experts",
    ]  # fmt: skip
    for score in result["scores"]:
        assert score["split"] == "test"
        assert score["model"] == "ConvNet-D2 width 4 instance"
        assert score["n"] == len(score["values"]) == 2
        assert score["mean"] == pytest.approx(sum(score["values"]) / 2)
        assert score["sd"] == pytest.approx(torch.tensor(score["values"]).std().item(), rel=1e-4)
        assert score["ipc"] == (None if score["method"] == "experts" else 1)
    assert result["data"] == json.loads(json.dumps(digits.summary(counts=True)))
    assert result["settings"]["distill"]["iterations"] == result["last_iteration"] == 4
    assert result["library"]["experts"] == 2
    assert (out / "experts" / "library.json").exists()


def test_the_best_is_the_one_the_log_says(ran: tuple[Path, dict]) -> None:
    out, result = ran
    judged = {r["step"]: r["val_mean"] for r in read_log(out / "log.jsonl") if "val_mean" in r}
    assert list(judged) == [0, 2, 4]
    assert judged[result["best_iteration"]] == max(judged.values())
    assert result["best_validation"]["mean"] == max(judged.values())
    assert SyntheticSet.load(out / "best").info["iteration"] == result["best_iteration"]
    assert SyntheticSet.load(out / "last").info["iteration"] == 4


def without_clock(result: dict) -> dict:
    clock = ("seconds", "started", "peak_memory_mb", "peak_memory_child_mb")
    return {name: value for name, value in result.items() if name not in clock}


class NothingDone(Silent):
    def update(self, task: str, done: int, total: int, **values: object) -> None:
        assert not values, f"{task}: {done} of {total}"


class Evaluation(Silent):
    """Passes the epochs of an evaluation to a function."""

    def __init__(self, heard: Callable[[str, int, int], None]) -> None:
        self.heard = heard

    def update(self, task: str, done: int, total: int, **values: object) -> None:
        if task == "evaluation":
            self.heard(task, done, total)


def test_a_run_that_is_done_does_nothing_again(ran: tuple[Path, dict], tmp_path: Path) -> None:
    out, first = ran
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    lying = ["checkpoint.safetensors", "log.jsonl", "best/distilled.safetensors"]
    lying += [f"experts/{p.name}" for p in (copy / "experts").iterdir() if p.is_file()]
    before = {name: (copy / name).stat().st_mtime_ns for name in lying}
    again = pipeline.run(
        RUN,
        copy,
        resources=ONE,
        progress=NothingDone(),
    )
    assert {name: (copy / name).stat().st_mtime_ns for name in lying} == before
    first = without_clock(first)
    first["library"] = {**first["library"], "path": str(copy / "experts")}
    assert without_clock(again) == first


class Kill(BaseException):
    """As a killed process: nothing catches it."""


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_run_killed_while_it_is_judged_trains_only_the_networks_left(
    ran: tuple[Path, dict], tmp_path: Path, at: int
) -> None:
    out, first = ran
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    (copy / "result.json").unlink()
    log = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(line for line in log if '"of"' not in line))

    def kill(task: str, done: int, total: int) -> None:
        if done == at * RUN.evaluate.epochs:  # network `at` is trained and not tested yet
            raise Kill

    with pytest.raises(Kill):
        pipeline.run(RUN, copy, resources=ONE, progress=Evaluation(kill))
    assert not (copy / "result.json").exists()
    with (copy / "log.jsonl").open("a") as torn:
        torn.write('{"event": "network", "of"')
    told: list[tuple[str, int, int]] = []
    again = pipeline.run(RUN, copy, resources=ONE, progress=Evaluation(lambda *w: told.append(w)))
    assert again["scores"] == first["scores"]
    left = (3 * RUN.evaluate.n - at + 1) * RUN.evaluate.epochs
    assert told[-1] == ("evaluation", left, left)
    assert network_lines(copy) == network_lines(out)


def network_lines(out: Path) -> list[tuple[str, str, int]]:
    lines = [line for line in read_log(out / "log.jsonl") if line.get("event") == "network"]
    return [(line["method"], line["of"], line["number"]) for line in lines]


def test_a_run_that_keeps_another_set_judges_anew_only_that_one(
    ran: tuple[Path, dict], library: ExpertLibrary, tmp_path: Path
) -> None:
    """As after more iterations: random and herding images are the same."""
    out, first = ran
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    made = SyntheticSet.load(copy / "best")
    other = dataclasses.replace(made, images=made.images.flip(0))
    for _ in range(2):
        scores = pipeline.compare_on_test(
            other, tiny.digits(), library, tiny.EVALUATE, seed=RUN.seed, out=copy
        )
        assert [s.values for s in scores[1:3]] == [tuple(s["values"]) for s in first["scores"][1:3]]
    new = network_lines(copy)[len(network_lines(out)) :]
    assert [method for method, _, _ in new] == ["mtt"] * RUN.evaluate.n


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"method": {"max_start_epoch": 9}}, ["epoch 9", "have 3", "epochs=9"]),
        ({"method": {"batch_syn": 11}}, ["batch_syn is 11", "10 synthetic images", "1 to 10"]),
        ({"method": {"augment": "colour"}}, ["'colour'", "did you mean 'color'"]),
        ({"evaluate": {"augment": "colour"}}, ["'colour'", "did you mean 'color'"]),
    ],
)
def test_a_run_refuses_before_any_expert_is_trained(
    tmp_path: Path, changes: dict[str, dict], words: list[str]
) -> None:
    parts = {name: dataclasses.replace(getattr(RUN, name), **c) for name, c in changes.items()}
    with pytest.raises(SettingError) as error:
        pipeline.run(dataclasses.replace(RUN, **parts), tmp_path / "out", resources=ONE)
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tmp_path / "out").exists()


# -- distill -------------------------------------------------------------------------------------


def test_distilling_looks_at_no_test_image(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = distilling.evaluate_sets

    def spy(*args: object, **kwargs: object) -> object:
        asked.append((args[3].images, args[3].labels, args[3].split))
        return original(*args, **kwargs)

    monkeypatch.setattr(distilling, "evaluate_sets", spy)
    distill(tmp_path / "run", library)
    assert len(asked) == 3  # at the start as well
    validation = digits.val
    assert validation is not None
    for images, labels, split in asked:
        assert split == "val"
        assert torch.equal(images, library.whitening.apply_split(validation))
        assert torch.equal(labels, validation.labels)


def test_the_set_says_how_it_was_made(tmp_path: Path, library: ExpertLibrary) -> None:
    outcome = distill(tmp_path / "run", library, method=mtt(batch_syn=5), ipc=2)
    made = outcome.last
    assert made.images.shape == (20, 1, 8, 8)
    assert torch.bincount(made.hard_labels).tolist() == [2] * 10
    assert made.whitening.checksum == library.whitening.checksum
    assert NetworkSpec.from_json(made.info["network"]) == library.spec
    assert made.info["settings"]["ipc"] == made.info["ipc"] == made.ipc == 2
    assert made.info["data"]["fingerprint"] == library.data["fingerprint"]
    assert made.info["experts"]["experts"] == 2
    first = begun(library, ipc=2).images
    file = open_tensors(tmp_path / "run" / "checkpoint.safetensors", kind="checkpoint", version=1)
    learned = file.read("learned.log_step_size").exp().item()
    assert made.step_size == pytest.approx(learned, rel=1e-6)
    assert abs(learned / tiny.METHOD.step_size - 1) > 1e-5
    assert not torch.equal(made.images, first)
    assert (made.images - first).abs().max() < 2


def test_real_beginnings_are_training_images_of_their_class(
    library: ExpertLibrary, digits: ImageDataset
) -> None:
    first = begun(library, ipc=3)
    assert first.classes.tolist() == [k for k in range(10) for _ in range(3)]
    known = library.whitening.apply(to_float(digits.train.images)).flatten(1)
    places = [(known == image.flatten()).all(1).nonzero().flatten() for image in first.images]
    assert all(len(found) for found in places)
    for found, label in zip(places, first.classes, strict=True):
        assert label in digits.train.labels[found]
    assert len({int(found[0]) for found in places}) == 30
    assert torch.equal(first.images, begun(library, ipc=3).images)
    assert not torch.equal(first.images, begun(library, ipc=3, seed=1).images)


def test_noise_beginnings(library: ExpertLibrary) -> None:
    method = mtt(soft_labels=True, step_size=0.5)
    first = begun(library, method, ipc=200, init="noise")
    assert first.images.shape == (2000, 1, 8, 8)
    assert abs(first.images.mean()) < 0.02
    assert first.images.std() == pytest.approx(1, abs=0.02)
    assert first.labels.shape == (2000, 10)
    assert torch.equal(first.labels.argmax(1), first.classes)
    assert first.step_size.item() == pytest.approx(0.5)
    other = begun(library, method, ipc=200, init="noise", seed=1)
    assert not torch.equal(first.images, other.images)


def test_a_mistake_in_the_evaluation_is_refused_before_the_first_iteration(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset
) -> None:
    for evaluation, method, said in [
        (EvaluateConfig(augment="colour"), tiny.METHOD, "'colour'"),
        (tiny.EVALUATE, mtt(batch_syn=11), "batch_syn is 11"),
    ]:
        with pytest.raises(SettingError, match=said):
            pipeline.distill(
                digits, method, library, tmp_path / "run",
                config=tiny.DISTILL, evaluation=evaluation,
            )  # fmt: skip
        assert not (tmp_path / "run").exists()


def test_data_without_a_validation_split_are_refused(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset
) -> None:
    without = dataclasses.replace(digits, val=None)
    copy = ExpertLibrary.open(library.path)
    copy.data = without.summary()
    with pytest.raises(SettingError, match=r"no validation images, .*; use data\.with_validation"):
        pipeline.distill(without, tiny.METHOD, copy, tmp_path / "run", config=tiny.DISTILL)


@pytest.fixture
def empty(library: ExpertLibrary, tmp_path: Path) -> ExpertLibrary:
    """A library whose making was killed before its first expert was done."""
    folder = tmp_path / "empty"
    folder.mkdir()
    for name in ("library.json", "whitening.safetensors"):
        shutil.copy(library.path / name, folder)
    return ExpertLibrary.open(folder)


def test_a_library_without_experts_is_refused(
    tmp_path: Path, empty: ExpertLibrary, digits: ImageDataset
) -> None:
    said = r"holds 0 finished experts; run `trajmatch experts --out .*empty` again"
    with pytest.raises(SettingError, match=said):
        distill(tmp_path / "run", empty)
    with pytest.raises(SettingError, match=said):
        pipeline.select_coreset("herding", digits, 1, experts=empty)


def test_a_library_without_experts_is_continued(
    empty: ExpertLibrary, library: ExpertLibrary, digits: ImageDataset
) -> None:
    one = dataclasses.replace(tiny.EXPERTS, experts=1)
    made = pipeline.train_experts(
        digits, empty.path, network=tiny.NETWORK, config=one, resources=Resources(workers=1)
    )
    assert torch.equal(made.trajectory(0).row(3), library.trajectory(0).row(3))


# -- select and evaluate -------------------------------------------------------------------------


def test_a_library_gives_a_coreset_its_whitening_and_refuses_other_data(
    library: ExpertLibrary, digits: ImageDataset
) -> None:
    for method in ("random", "herding"):
        chosen = pipeline.select_coreset(method, digits, 2, experts=library)
        assert chosen.whitening.checksum == library.whitening.checksum
    other = pipeline.Untrained(whitening="zca")
    assert pipeline.select_coreset("random", digits, 1, other).whitening.name == "zca"
    with pytest.raises(MismatchError, match="trained on digits"):
        pipeline.select_coreset("random", digits.resized(12), 1, library)


def test_herding_looks_at_the_first_experts_last_epoch(
    library: ExpertLibrary, digits: ImageDataset
) -> None:
    chosen = pipeline.select_coreset("herding", digits, 1, experts=library)
    spec, vector = library.spec, library.trajectory(0).row(library.epochs)
    images = library.whitening.apply_split(digits.train)
    features = coresets.embeddings(spec, vector, images)
    for label in range(10):
        members = (digits.train.labels == label).nonzero().flatten()
        center = features[members].mean(0)
        nearest = members[(features[members] - center).norm(dim=1).argmin()]
        assert torch.equal(chosen.images[label], images[nearest])


def test_networks_to_judge_a_set(
    ran: tuple[Path, dict], digits: ImageDataset, library: ExpertLibrary
) -> None:
    best = ran[0] / "best"
    quick = EvaluateConfig(n=1, epochs=1, workers=1)
    scores = pipeline.evaluate(
        best,
        digits,
        networks=[NetworkConfig(network="mlp"), library.spec],
        config=quick,
        split="val",
    )
    assert [s.model for s in scores] == ["MLP width 128", "ConvNet-D2 width 4 instance"]
    assert {(s.method, s.ipc, s.n, s.sd, s.split) for s in scores} == {("mtt", 1, 1, None, "val")}
    own = pipeline.evaluate(best, digits, config=quick, split="val")
    assert own == scores[1:]
    chosen = pipeline.select_coreset("random", digits, 1)
    assert pipeline.evaluate(chosen, digits, config=quick)[0].model.startswith("ConvNet-D2 width 1")


def test_what_a_set_cannot_be_judged_on(ran: tuple[Path, dict], digits: ImageDataset) -> None:
    best = ran[0] / "best"
    with pytest.raises(SettingError, match="unknown split 'train2'; use test or val"):
        pipeline.evaluate(best, digits, split="train2")
    with pytest.raises(SettingError, match="unknown split 'val'"):
        pipeline.evaluate(best, dataclasses.replace(digits, val=None), split="val")
    renamed = dataclasses.replace(digits, classes=tuple("abcdefghij"))
    with pytest.raises(MismatchError, match=r"classes 0, 1, 2, 3, \.\.\. \(10\).*a, b, c, d"):
        pipeline.evaluate(best, renamed)
    with pytest.raises(MismatchError, match=r"1x8x8 and the data's 1x12x12.*size="):
        pipeline.evaluate(best, digits.resized(12))


def test_the_experts_score_is_their_own(library: ExpertLibrary, digits: ImageDataset) -> None:
    score = pipeline.experts_score(library, digits)
    assert list(score.values) == list(library.accuracy("test").values())
    assert (score.n, score.method, score.ipc) == (2, "experts", None)
    assert "3 epochs on all training images, lr 0.05, batch 128" in score.protocol
    assert score.label == "experts (3 epochs)"
    assert score.tests == digits.class_counts()["test"]


def test_a_ceiling_takes_the_experts_network_and_refuses_other_data(
    library: ExpertLibrary, digits: ImageDataset
) -> None:
    once = dataclasses.replace(tiny.EVALUATE, n=1, epochs=1)
    score = pipeline.ceiling(digits, library, config=once)
    assert (score.model, score.n) == (library.spec.describe(), 1)
    with pytest.raises(MismatchError, match="give the same data="):
        pipeline.ceiling(digits.resized(12), library, config=once)
    with pytest.raises(SettingError, match="is a folder of `trajmatch experts`"):
        pipeline.ceiling(digits, library, config=once, out=library.path)
    with pytest.raises(SettingError, match="unknown split 'tests'; use test or val"):
        pipeline.ceiling(digits, library, config=once, split="tests")


def test_a_network_named_as_the_sets_own_is_the_sets_own(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset
) -> None:
    made = distill(tmp_path / "run", library).best
    named = NetworkConfig(network=library.spec.name)
    (score,) = pipeline.evaluate(made, digits, networks=[named], config=tiny.EVALUATE)
    assert score.model == library.spec.describe()


def test_validation_images_of_another_cut_are_refused(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    made = distill(tmp_path / "run", library).best
    other = pipeline.load(DataConfig(val_fraction=0.3))
    with pytest.raises(MismatchError, match="validation images may be among"):
        pipeline.evaluate(made, other, config=tiny.EVALUATE, split="val")


def test_too_many_images_per_class_are_refused_before_experts_are_trained(tmp_path: Path) -> None:
    asked = dataclasses.replace(RUN, distill=dataclasses.replace(tiny.DISTILL, ipc=1000))
    with pytest.raises(SettingError, match="ipc is 1000 and class '8' has"):
        pipeline.run(asked, tmp_path / "run", resources=ONE)
    assert not (tmp_path / "run").exists()


def test_two_distillations_into_one_folder_are_refused(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    distill(tmp_path / "run", library)
    with lock(tmp_path / "run" / ".lock"):
        with pytest.raises(SettingError, match="another process is writing to") as error:
            distill(tmp_path / "run", library)
        assert "\n" not in str(error.value)


def test_a_run_tells_how_far_its_last_judging_is(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline.run(RUN, tmp_path, resources=ONE, progress=Evaluation(lambda *w: told.append(w)))
    epochs = 3 * RUN.evaluate.n * RUN.evaluate.epochs  # of the made set, random and herding
    assert {(what, total) for what, _, total in told} == {("evaluation", epochs)}
    done = [one for _, one, _ in told]
    assert done == sorted(done)
    assert done[-1] == epochs


# -- labels that begin as experts see the images -------------------------------------------------


def test_labels_begin_as_the_mean_of_the_experts_logits(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset
) -> None:
    """By hand: the experts at their last epoch, on the images that are begun from."""
    method = mtt(soft_labels=True, init_labels="experts", lr_label=1e-30)
    distill(tmp_path / "run", library, method=method)
    made = SyntheticSet.load(tmp_path / "run" / "last")
    first = begun(library).images
    logits, network = [], library.spec.build(seed=0)
    for expert in library.experts:
        load_parameter_vector(network, library.trajectory(expert).row(tiny.EXPERTS.epochs))
        with torch.no_grad():
            logits.append(network(first))
    assert len(logits) == 2
    torch.testing.assert_close(made.labels, torch.softmax((logits[0] + logits[1]) / 2, 1))
    assert (made.labels.argmax(1) == torch.arange(10)).sum() > 1  # they have learned something


def test_five_experts_are_asked_at_most(
    library: ExpertLibrary, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    trajectory = library.trajectory
    peopled = ExpertLibrary.open(library.path)
    peopled.experts = [3, 4, 5, 7, 8, 9]
    monkeypatch.setattr(peopled, "trajectory", lambda n: (asked.append(n), trajectory(0))[1])
    images = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert tiny.problem(peopled).teacher_logits(images).shape == (3, 10)
    assert asked == [3, 4, 5, 7, 8]


@pytest.mark.parametrize(
    ("method", "epochs", "words"),
    [
        (mtt(init_labels="experts"), 3, "no labels are learned; add soft_labels=True"),
        (DD(init_labels="experts"), None, "no labels are learned; add soft_labels=True"),
        (DD(init_labels="experts", soft_labels=True), None, "dd has none; give experts="),
        (LD(init_labels="experts"), None, "ld has none; give experts="),
        (
            mtt(init_labels="experts", soft_labels=True, texture=True),
            3,
            "leave it or texture= out",
        ),
    ],
)
def test_experts_labels_are_refused_where_there_are_none(
    library: ExpertLibrary, method: Method, epochs: int | None, words: str
) -> None:
    with pytest.raises(SettingError, match="init_labels is experts") as refused:
        method.check(Conditions(library.spec, ipc=1, expert_epochs=epochs))
    assert words in str(refused.value)


@pytest.mark.parametrize("kind", [DD, LD])
def test_experts_labels_are_for_every_method_that_learns_labels(
    library: ExpertLibrary, kind: type[Method]
) -> None:
    soft = {} if kind is LD else {"soft_labels": True}
    kind(init_labels="experts", **soft).check(Conditions(library.spec, ipc=1, expert_epochs=3))


# -- what a run that lies there may be continued with --------------------------------------------


def test_another_optimizer_or_schedule_is_another_run(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    """In both directions: from the published one and back to it."""
    plain, adam = tmp_path / "plain", tmp_path / "adam"
    distill(plain, library)
    distill(adam, library, optimizer=Adam())
    with pytest.raises(MismatchError, match=r"with optimizer=sgd, this one has optimizer=adam"):
        distill(plain, library, optimizer=Adam())
    with pytest.raises(MismatchError, match=r"with optimizer=adam, this one has optimizer=sgd"):
        distill(adam, library)
    with pytest.raises(MismatchError, match=r"with schedule=constant, this one has .*cosine"):
        distill(plain, library, schedule=Cosine())


def test_a_schedule_by_the_number_of_iterations_is_not_extended(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    distill(tmp_path / "run", library, schedule=Cosine())
    with pytest.raises(MismatchError, match="with iterations=4, this one has iterations=6"):
        distill(tmp_path / "run", library, schedule=Cosine(), iterations=6)


def test_a_checkpoint_of_version_0_1_is_continued(tmp_path: Path, library: ExpertLibrary) -> None:
    """It has no names for what was not a setting then, and those of all methods' settings."""
    whole, copy = tmp_path / "whole", tmp_path / "copy"
    method = DD(syn_steps=3, bptt_steps=2)
    distill(whole, library, method=method)
    distill(copy, library, method=method, iterations=2)
    path = copy / "checkpoint.safetensors"
    file = open_tensors(path, kind="checkpoint", version=1)
    metadata = dict(file.metadata)
    origin = metadata["origin"]
    for later in ("optimizer", "schedule"):
        del origin[later]
    origin |= {"window": origin.pop("bptt_steps"), "max_start_epoch": 6}
    metadata["decisions"] = metadata.pop("resolved")
    tensors = {name: file.read(name) for name in file.names}
    save_tensors(path, tensors, kind="checkpoint", version=1, metadata=metadata)
    distill(copy, library, method=method)
    one, other = (SyntheticSet.load(place / "last") for place in (whole, copy))
    assert torch.equal(one.images, other.images)


# -- a method that needs no experts --------------------------------------------------------------


def test_a_method_that_matches_no_experts_needs_no_library(
    tmp_path: Path, digits: ImageDataset
) -> None:
    untrained = pipeline.Untrained(tiny.NETWORK, "normalize")
    outcome = pipeline.distill(
        digits, DM(), untrained, tmp_path / "run", config=tiny.DISTILL, evaluation=tiny.EVALUATE
    )
    assert (outcome.iterations, outcome.best.step_size) == (4, None)
    with pytest.raises(SettingError, match="mtt matches experts; give experts= a library"):
        pipeline.distill(digits, tiny.METHOD, untrained, tmp_path / "other", config=tiny.DISTILL)
    assert not (tmp_path / "other").exists()


# -- baselines that cannot be had ----------------------------------------------------------------


class _Heard(Silent):
    def __init__(self) -> None:
        self.messages: list[str] = []

    def message(self, text: str) -> None:
        self.messages.append(text)


def few_digits() -> ImageDataset:
    """Three training images of each class."""
    data = tiny.digits()
    chosen = torch.cat([members[:3] for members in data.train.per_class(10)])
    return dataclasses.replace(data, name="few", train=data.train.take(chosen))


def test_baselines_that_cannot_be_had_are_left_out_and_named(tmp_path: Path) -> None:
    recipe = dataclasses.replace(
        RUN, distill=dataclasses.replace(tiny.DISTILL, ipc=5, init="noise", iterations=1)
    )
    heard = _Heard()
    result = pipeline.run(recipe, tmp_path, data=few_digits(), resources=ONE, progress=heard)
    reason = "ipc is 5 and class '0' has 3 training images"
    assert result["left_out"] == {"random": reason, "herding": reason}
    assert [score["method"] for score in result["scores"]] == ["mtt", "experts"]
    assert heard.messages[:2] == [
        f"random images are left out: {reason}",
        f"herding images are left out: {reason}",
    ]
    assert read_result(tmp_path)["left_out"] == result["left_out"]


def test_what_is_advised_where_a_class_has_too_few_images_is_true(tmp_path: Path) -> None:
    distill = dataclasses.replace(tiny.DISTILL, ipc=5)
    with pytest.raises(SettingError) as error:
        pipeline.run(dataclasses.replace(RUN, distill=distill), tmp_path / "x", data=few_digits())
    assert str(error.value) == (
        "ipc is 5 and class '0' has 3 training images to begin from; choose ipc from 1 to 3, or "
        "begin with init='noise', which leaves random and herding images, to compare with, out"
    )
    assert not (tmp_path / "x").exists()


def test_nothing_is_left_out_of_a_usual_run(ran: tuple[Path, dict]) -> None:
    assert "left_out" not in ran[1]
    assert baselines_left_out(tiny.digits(), 1, experts=True) == {}
