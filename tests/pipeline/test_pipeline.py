"""The verbs put together: a whole run, the same again without work, and what is refused first."""

from __future__ import annotations

import dataclasses
import importlib
import json
import shutil
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import pipeline
from trajmatch.config import DataConfig, DistillConfig, EvaluateConfig, NetworkConfig, RunConfig
from trajmatch.data import ImageDataset
from trajmatch.data.whiten import to_float
from trajmatch.errors import MismatchError, SettingError
from trajmatch.evaluation import protocol
from trajmatch.experts import ExpertLibrary
from trajmatch.methods import coresets
from trajmatch.networks import NetworkSpec
from trajmatch.networks.functional import load_parameter_vector
from trajmatch.pipeline.distill import require_method
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

distilling = importlib.import_module("trajmatch.pipeline.distill")  # not the function

RUN = RunConfig(
    data=DataConfig(whitening="normalize"),
    network=tiny.NETWORK,
    experts=tiny.EXPERTS,
    distill=tiny.DISTILL,
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
    return out, pipeline.run(RUN, out, workers=1)


def distill(out: Path, library: ExpertLibrary, **changes: object) -> pipeline.Outcome:
    """On digits with the tiny settings but for `changes` of the distillation's."""
    return pipeline.distill(
        tiny.digits(),
        library,
        out,
        config=dataclasses.replace(tiny.DISTILL, **changes),
        evaluation=tiny.EVALUATE,
    )


# -- run -----------------------------------------------------------------------------------------


def test_a_run_says_what_it_found(ran: tuple[Path, dict], digits: ImageDataset) -> None:
    out, result = ran
    assert read_result(out) == result
    assert [score["method"] for score in result["scores"]] == [
        "mtt", "random", "herding", "full data",
    ]  # fmt: skip
    for score in result["scores"]:
        assert score["split"] == "test"
        assert score["model"] == "ConvNet-D2 width 4 instance"
        assert score["n"] == len(score["values"]) == 2
        assert score["mean"] == pytest.approx(sum(score["values"]) / 2)
        assert score["sd"] == pytest.approx(torch.tensor(score["values"]).std().item(), rel=1e-4)
        assert score["ipc"] == (None if score["method"] == "full data" else 1)
    assert result["data"] == json.loads(json.dumps(digits.summary()))
    assert result["settings"]["distill"]["iterations"] == result["last_iteration"] == 4
    assert result["library"]["experts"] == 2
    assert (out / "experts" / "library.json").exists()


def test_the_best_is_the_one_the_log_says(ran: tuple[Path, dict]) -> None:
    out, result = ran
    judged = {r["step"]: r["val_mean"] for r in read_log(out / "log.jsonl") if "val_mean" in r}
    assert list(judged) == [2, 4]
    assert judged[result["best_iteration"]] == max(judged.values())
    assert result["best_validation"]["mean"] == max(judged.values())
    assert SyntheticSet.load(out / "best").info["iteration"] == result["best_iteration"]
    assert SyntheticSet.load(out / "last").info["iteration"] == 4


def without_clock(result: dict) -> dict:
    clock = ("seconds", "started", "peak_memory_mb", "peak_memory_child_mb")
    return {name: value for name, value in result.items() if name not in clock}


def test_a_run_that_is_done_does_nothing_again(
    ran: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, first = ran
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    lying = ["checkpoint.safetensors", "log.jsonl", "best/distilled.safetensors"]
    lying += [f"experts/{p.name}" for p in (copy / "experts").iterdir() if p.is_file()]
    before = {name: (copy / name).stat().st_mtime_ns for name in lying}
    monkeypatch.setattr(protocol, "train_network", None)
    again = pipeline.run(
        RUN,
        copy,
        workers=1,
        on_progress=lambda event: pytest.fail("no expert was missing"),
        on_iteration=lambda iteration, values: pytest.fail("no iteration was missing"),
        on_judging=lambda what, done, total: pytest.fail("no network was missing"),
    )
    assert {name: (copy / name).stat().st_mtime_ns for name in lying} == before
    first = without_clock(first)
    first["library"] = {**first["library"], "path": str(copy / "experts")}
    assert without_clock(again) == first


class Kill(BaseException):
    """As a killed process: nothing catches it."""


@pytest.mark.parametrize("at", [1, 2, 5])
def test_a_run_killed_while_it_is_judged_trains_only_the_networks_left(
    ran: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    out, first = ran
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    (copy / "result.json").unlink()
    log = (copy / "log.jsonl").read_text().splitlines(keepends=True)
    (copy / "log.jsonl").write_text("".join(line for line in log if '"of"' not in line))
    trained, train = [], protocol.train_network

    def killed(*given: object, **known: object) -> None:
        if len(trained) == at - 1:
            trained.append("killed")
            raise Kill
        train(*given, **known)
        trained.append(known["seed"])

    monkeypatch.setattr(protocol, "train_network", killed)
    with pytest.raises(Kill):
        pipeline.run(RUN, copy, workers=1)
    assert not (copy / "result.json").exists()
    with (copy / "log.jsonl").open("a") as torn:
        torn.write('{"event": "network", "of"')
    told: list[tuple[str, int, int]] = []
    again = pipeline.run(RUN, copy, workers=1, on_judging=lambda *words: told.append(words))
    assert again["scores"] == first["scores"]
    assert len(trained) == 3 * RUN.evaluate.n + 1
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
            other, tiny.digits(), library, tiny.EVALUATE, seed=RUN.seed, device="cpu", out=copy
        )
        assert [s.values for s in scores[1:3]] == [tuple(s["values"]) for s in first["scores"][1:3]]
    new = network_lines(copy)[len(network_lines(out)) :]
    assert [method for method, _, _ in new] == ["mtt"] * RUN.evaluate.n


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distill": {"max_start_epoch": 9}}, ["epoch 9", "have 3", "--epochs 9"]),
        ({"distill": {"batch_syn": 11}}, ["batch_syn is 11", "10 synthetic images", "1 to 10"]),
        ({"distill": {"augment": "colour"}}, ["'colour'", "did you mean 'color'"]),
        ({"evaluate": {"augment": "colour"}}, ["'colour'", "did you mean 'color'"]),
    ],
)
def test_a_run_refuses_before_any_expert_is_trained(
    tmp_path: Path, changes: dict[str, dict], words: list[str]
) -> None:
    parts = {name: dataclasses.replace(getattr(RUN, name), **c) for name, c in changes.items()}
    with pytest.raises(SettingError) as error:
        pipeline.run(dataclasses.replace(RUN, **parts), tmp_path / "out", workers=1)
    assert [word for word in words if word not in str(error.value)] == []
    assert not (tmp_path / "out").exists()


# -- distill -------------------------------------------------------------------------------------


def test_distilling_looks_at_no_test_image(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    original = distilling.evaluate_images

    def spy(*args: object, **kwargs: object) -> object:
        asked.append((args[4], args[5], kwargs["split"]))
        return original(*args, **kwargs)

    monkeypatch.setattr(distilling, "evaluate_images", spy)
    distill(tmp_path / "run", library)
    assert len(asked) == 2
    validation = digits.val
    assert validation is not None
    for images, labels, split in asked:
        assert split == "val"
        assert torch.equal(images, library.whitening.apply_split(validation))
        assert torch.equal(labels, validation.labels)


def test_the_set_says_how_it_was_made(tmp_path: Path, library: ExpertLibrary) -> None:
    outcome = distill(tmp_path / "run", library, ipc=2, batch_syn=5)
    made = outcome.last
    assert made.images.shape == (20, 1, 8, 8)
    assert torch.bincount(made.hard_labels).tolist() == [2] * 10
    assert made.whitening.checksum == library.whitening.checksum
    assert NetworkSpec.from_json(made.info["network"]) == library.spec
    assert made.info["settings"]["ipc"] == made.info["ipc"] == made.ipc == 2
    assert made.info["data"]["fingerprint"] == library.data["fingerprint"]
    assert made.info["experts"]["experts"] == 2
    begun = pipeline.initial_images(
        tiny.digits(), library.whitening, dataclasses.replace(tiny.DISTILL, ipc=2), seed=0
    )
    file = open_tensors(tmp_path / "run" / "checkpoint.safetensors", kind="checkpoint", version=1)
    learned = file.read("learned.log_step_size").exp().item()
    assert made.step_size == pytest.approx(learned, rel=1e-6)
    assert abs(learned / tiny.DISTILL.step_size - 1) > 1e-5
    assert not torch.equal(made.images, begun.images)
    assert (made.images - begun.images).abs().max() < 2


def test_real_beginnings_are_training_images_of_their_class(
    library: ExpertLibrary, digits: ImageDataset
) -> None:
    config = DistillConfig(ipc=3)
    begun = pipeline.initial_images(digits, library.whitening, config, seed=0)
    assert begun.classes.tolist() == [k for k in range(10) for _ in range(3)]
    known = library.whitening.apply(to_float(digits.train.images)).flatten(1)
    places = [(known == image.flatten()).all(1).nonzero().flatten() for image in begun.images]
    assert all(len(found) for found in places)
    for found, label in zip(places, begun.classes, strict=True):
        assert label in digits.train.labels[found]
    assert len({int(found[0]) for found in places}) == 30
    same = pipeline.initial_images(digits, library.whitening, config, seed=0)
    other = pipeline.initial_images(digits, library.whitening, config, seed=1)
    assert torch.equal(begun.images, same.images)
    assert not torch.equal(begun.images, other.images)


def test_noise_beginnings(library: ExpertLibrary, digits: ImageDataset) -> None:
    config = DistillConfig(ipc=200, init="noise", soft_labels=True, step_size=0.5)
    begun = pipeline.initial_images(digits, library.whitening, config, seed=0)
    assert begun.images.shape == (2000, 1, 8, 8)
    assert abs(begun.images.mean()) < 0.02
    assert begun.images.std() == pytest.approx(1, abs=0.02)
    assert begun.labels.shape == (2000, 10)
    assert torch.equal(begun.labels.argmax(1), begun.classes)
    assert begun.step_size.item() == pytest.approx(0.5)
    other = pipeline.initial_images(digits, library.whitening, config, seed=1)
    assert not torch.equal(begun.images, other.images)


def test_a_mistake_in_the_evaluation_is_refused_before_the_first_iteration(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset
) -> None:
    for evaluation, distillation in [
        (EvaluateConfig(augment="colour"), DistillConfig(max_start_epoch=1)),
        (tiny.EVALUATE, DistillConfig(max_start_epoch=1, batch_syn=11)),
    ]:
        with pytest.raises(SettingError):
            pipeline.distill(
                digits, library, tmp_path / "run", config=distillation, evaluation=evaluation
            )
        assert not (tmp_path / "run").exists()


def test_data_without_a_validation_split_are_refused(
    tmp_path: Path, library: ExpertLibrary, digits: ImageDataset
) -> None:
    without = dataclasses.replace(digits, val=None)
    copy = ExpertLibrary.open(library.path)
    copy.data = without.summary()
    with pytest.raises(SettingError, match=r"no validation split; use data\.with_validation"):
        pipeline.distill(without, copy, tmp_path / "run", config=tiny.DISTILL)


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
    made = pipeline.train_experts(digits, empty.path, network=tiny.NETWORK, config=one, workers=1)
    assert torch.equal(made.trajectory(0).row(3), library.trajectory(0).row(3))


# -- select and evaluate -------------------------------------------------------------------------


def test_a_library_gives_a_coreset_its_whitening_or_refuses_another(
    library: ExpertLibrary, digits: ImageDataset
) -> None:
    for method in ("random", "herding"):
        chosen = pipeline.select_coreset(method, digits, 2, experts=library)
        assert chosen.whitening.checksum == library.whitening.checksum
        with pytest.raises(MismatchError, match=r"'normalize' and this asks for 'zca'"):
            pipeline.select_coreset(method, digits, 2, experts=library, whitening="zca")
    assert pipeline.select_coreset("random", digits, 1, whitening="zca").whitening.name == "zca"


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
    told = []
    scores = pipeline.evaluate(
        best,
        digits,
        networks=[NetworkConfig(network="mlp"), library.spec],
        config=quick,
        split="val",
        on_score=told.append,
    )
    assert [s.model for s in scores] == ["MLP width 128", "ConvNet-D2 width 4 instance"]
    assert told == scores
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
    with pytest.raises(MismatchError, match=r"1x8x8 and the data's 1x12x12.*--size"):
        pipeline.evaluate(best, digits.resized(12))


def test_the_ceiling_is_the_experts_own(library: ExpertLibrary) -> None:
    score = pipeline.full_data_score(library)
    assert list(score.values) == list(library.accuracy("test").values())
    assert (score.n, score.method, score.ipc) == (2, "full data", None)
    assert "3 epochs on all training images, lr 0.05, batch 128" in score.protocol


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
        pipeline.run(asked, tmp_path / "run", workers=1)
    assert not (tmp_path / "run").exists()


def test_two_distillations_into_one_folder_are_refused(
    tmp_path: Path, library: ExpertLibrary
) -> None:
    import fcntl

    distill(tmp_path / "run", library)
    with (tmp_path / "run" / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(SettingError, match="another process is distilling into"):
            distill(tmp_path / "run", library)


def test_a_run_tells_how_far_its_last_judging_is(tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    pipeline.run(RUN, tmp_path, workers=1, on_judging=lambda *words: told.append(words))
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
    distill(tmp_path / "run", library, soft_labels=True, init_labels="experts", lr_label=1e-30)
    made = SyntheticSet.load(tmp_path / "run" / "last")
    begun = pipeline.initial_images(digits, library.whitening, tiny.DISTILL, seed=0).images
    logits, network = [], library.spec.build(seed=0)
    for expert in library.experts:
        load_parameter_vector(network, library.trajectory(expert).row(tiny.EXPERTS.epochs))
        with torch.no_grad():
            logits.append(network(begun))
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
    assert tiny.ground(peopled).teacher_logits(images).shape == (3, 10)
    assert asked == [3, 4, 5, 7, 8]


@pytest.mark.parametrize(
    ("settings", "experts", "words"),
    [
        ({}, True, "no labels are learned; add --soft-labels"),
        ({"method": "dd"}, False, "no labels are learned; add --soft-labels"),
        ({"method": "dd", "soft_labels": True}, False, "dd has none; give --experts"),
        ({"method": "ld"}, False, "ld has none; give --experts"),
        ({"soft_labels": True, "texture": True}, True, "leave it or --texture out"),
    ],
)
def test_experts_labels_are_refused_where_there_are_none(
    library: ExpertLibrary, settings: dict[str, object], experts: bool, words: str
) -> None:
    config = dataclasses.replace(tiny.DISTILL, init_labels="experts", **settings)
    with pytest.raises(SettingError, match="init_labels is experts") as refused:
        require_method(config, experts=experts)
    assert words in str(refused.value)


@pytest.mark.parametrize(("method", "soft"), [("dd", True), ("ld", False)])
def test_experts_labels_are_for_every_method_that_learns_labels(
    library: ExpertLibrary, method: str, soft: bool
) -> None:
    settings = {"method": method, "soft_labels": soft, "init_labels": "experts"}
    require_method(dataclasses.replace(tiny.DISTILL, **settings), experts=True)
