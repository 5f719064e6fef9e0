"""Every command from its words to its files; every refusal one line that helps."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from trajmatch import cli
from trajmatch.experts import ExpertLibrary
from trajmatch.experts.library import digest
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors, read_json, save_tensors, write_json
from trajmatch.synthetic import SyntheticSet

EXPERTS = f"experts --device cpu {tiny.NETWORK_WORDS} {tiny.EXPERT_WORDS}"
DISTILL = f"distill --device cpu {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS}"
SELECT = f"select --device cpu {tiny.SCORE_WORDS}"
EVALUATE = f"evaluate --device cpu {tiny.EVALUATE_WORDS}"


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting for the disk would take most of the time, and is for what no test here does."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRAJMATCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def library() -> Path:
    return tiny.library().path


@pytest.fixture(scope="module")
def run(library: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished distillation. Not to be written to."""
    out = tmp_path_factory.mktemp("commands") / "run"
    succeed(f"{DISTILL} --experts {library} --out {out}")
    return out


def succeed(line: str) -> None:
    assert cli.main(line.split()) == 0


Mistake = Callable[[str], str]


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a line that is refused; give the one line on stderr."""

    def refused(line: str) -> str:
        capsys.readouterr()
        assert cli.main(line.split()) == 2
        said = capsys.readouterr().err
        assert said.startswith(f"trajmatch {line.split()[0]}: ")
        assert said.endswith("\n")
        assert said.count("\n") == 1
        return said

    return refused


def holds(said: str, *words: str) -> None:
    assert [word for word in words if word not in said] == [], said


# -- what every command leaves -------------------------------------------------------------------

SCORE = {"method", "model", "ipc", "n", "mean", "sd", "protocol"}


def result_of(out: Path, command: str, *, fingerprint: str | None = None) -> dict:
    """result.json, after checking what the contract asks of it, and of the log."""
    result = read_result(out)
    assert result["command"] == command
    assert result["settings"]["seed"] == result["seed"]
    assert result["settings"]["out"] == str(out)
    assert result["versions"].keys() >= {"trajmatch", "torch", "python"}
    assert result["data"]["fingerprint"] == (fingerprint or tiny.digits().fingerprint)
    assert result["seconds"] > 0
    assert result["peak_memory_mb"] > 10
    assert result["device"] == "cpu"
    for score in result["scores"]:
        assert score.keys() >= SCORE
        assert 0 <= score["mean"] <= 100
        assert score["n"] == len(score["values"])
        assert (score["sd"] is None) == (score["n"] == 1)
        assert re.search(r"\d+ epochs", score["protocol"])
    assert read_log(out / "log.jsonl")
    return result


def page_of(out: Path) -> str:
    return (out / "report.html").read_text(encoding="utf-8")


def events(out: Path, name: str) -> list[dict]:
    return [line for line in read_log(out / "log.jsonl") if line.get("event") == name]


def test_experts(tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "experts"
    succeed(f"{EXPERTS} --out {out}")
    assert "2 experts in" in capsys.readouterr().out
    result = result_of(out, "experts")
    (score,) = result["scores"]
    assert (score["method"], score["n"], score["ipc"]) == ("experts", 2, None)
    assert result["library"]["experts"] == 2
    assert result["settings"]["network"]["width"] == 4
    made, same = ExpertLibrary.open(out), ExpertLibrary.open(library)
    for expert in (0, 1):
        assert torch.equal(made.trajectory(expert).row(3), same.trajectory(expert).row(3))
    epochs = events(out, "epoch")
    assert [(e["expert"], e["epoch"]) for e in epochs] == [
        (i, e) for i in (0, 1) for e in (1, 2, 3)
    ]
    assert all({"train_loss", "train_accuracy", "seconds"} <= e.keys() for e in epochs)
    assert [e["mean"] for e in events(out, "score")] == [score["mean"]]

    # More of them: the log goes on, and tells only of what was trained.
    succeed(f"{EXPERTS} --experts 3 --out {out}")
    assert [(e["expert"], e["epoch"]) for e in events(out, "epoch")[6:]] == [(2, 1), (2, 2), (2, 3)]
    assert result_of(out, "experts")["scores"][0]["n"] == 3


def test_distill(run: Path) -> None:
    result = result_of(run, "distill")
    assert [s["method"] for s in result["scores"]] == ["mtt", "random", "herding", "experts"]
    assert [s["split"] for s in result["scores"]] == ["test"] * 4
    assert result["settings"]["distill"]["method"] == "mtt"
    assert result["settings"]["distill"]["syn_steps"] == 3
    assert result["settings"]["distill"]["optimizer"] == "sgd"
    assert result["settings"]["evaluate"]["epochs"] == 2
    steps = [line for line in read_log(run / "log.jsonl") if "loss" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    for name in ("best", "last"):
        made = SyntheticSet.load(run / name)
        assert made.images.shape == (10, 1, 8, 8)
        assert len(list((run / name / "images").rglob("*.png"))) == 10
    assert len(list((run / "snapshots").iterdir())) == 5


def test_distill_again_does_nothing_and_more_iterations_extend_it(
    tmp_path: Path, run: Path, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    log = (out / "log.jsonl").read_bytes()
    succeed(f"{DISTILL} --experts {library} --out {out}")
    assert (out / "log.jsonl").read_bytes() == log
    assert result_of(out, "distill")["scores"] == read_result(run)["scores"]
    assert "continuing" not in capsys.readouterr().out
    succeed(f"{DISTILL} --experts {library} --out {out} --iterations 6")
    assert "continuing after iteration 4 of 6" in capsys.readouterr().out
    assert (out / "log.jsonl").read_bytes().startswith(log)
    assert result_of(out, "distill")["last_iteration"] == 6


def test_distill_soft_labels_from_noise(tmp_path: Path, library: Path) -> None:
    out = tmp_path / "run"
    succeed(f"{DISTILL} --experts {library} --out {out} --soft-labels --init noise --ipc 2")
    result_of(out, "distill")
    made = SyntheticSet.load(out / "last")
    assert made.is_soft
    assert made.images.shape == (20, 1, 8, 8)
    torch.testing.assert_close(made.labels.sum(1), torch.ones(20))
    assert len(made.labels.unique(dim=0)) == 20  # each has learned its own
    assert torch.equal(made.hard_labels, torch.arange(10).repeat_interleave(2))


@pytest.mark.slow
def test_distill_in_batches_by_both_methods(tmp_path: Path, library: Path) -> None:
    """Recomputing the graphs and keeping them agree to rounding."""
    made, losses = {}, {}
    for method in ("reverse", "stored"):
        out = tmp_path / method
        succeed(
            f"{DISTILL} --experts {library} --out {out} --ipc 2 --batch-syn 7 --segments 2 "
            f"--gradient {method}"
        )
        assert result_of(out, "distill")["resolved"]["keep"] == {"reverse": 0, "stored": 3}[method]
        made[method] = SyntheticSet.load(out / "last")
        losses[method] = [r["loss"] for r in read_log(out / "log.jsonl") if "loss" in r]
    one, other = made["reverse"], made["stored"]
    assert losses["reverse"] == pytest.approx(losses["stored"], rel=1e-5)
    torch.testing.assert_close(one.images, other.images, rtol=1e-5, atol=1e-5)
    assert one.step_size == pytest.approx(other.step_size, rel=1e-5)


def test_select_random(tmp_path: Path) -> None:
    out = tmp_path / "random"
    succeed(f"{SELECT} --ipc 3 --out {out} --seed 4 --no-score")
    result = result_of(out, "select")
    assert (result["seed"], result["scores"]) == (4, [])
    assert events(out, "selected")[0]["images"] == 30
    assert SyntheticSet.load(out / "best").ipc == 3


def test_select_a_fraction(tmp_path: Path, mistake: Mistake) -> None:
    out = tmp_path / "fraction"
    succeed(f"{SELECT} --fraction 0.035 --out {out}")
    chosen = SyntheticSet.load(out / "best")
    counts = tiny.digits().train.labels.bincount().tolist()
    assert chosen.labels.bincount().tolist() == [round(0.035 * count) for count in counts]
    assert chosen.ipc_words == "4 to 5"
    (score,) = result_of(out, "select")["scores"]
    assert (score["method"], score["n"], score["ipc"]) == ("random", 2, chosen.ipc)
    assert result_of(out, "select")["settings"]["fraction"] == 0.035
    succeed(f"report {out}")
    assert "4 to 5 images per class" in (out / "report.html").read_text()
    assert "give one" in mistake(f"{SELECT} --fraction 0.1 --ipc 2 --out {tmp_path}/no")
    assert "fraction is 2.0; it must" in mistake(f"{SELECT} --fraction 2 --out {tmp_path}/no")
    assert not (tmp_path / "no").exists()


def test_select_herding(tmp_path: Path, library: Path) -> None:
    out = tmp_path / "herding"
    succeed(f"{SELECT} --method herding --experts {library} --out {out}")
    (score,) = result_of(out, "select")["scores"]
    assert (score["method"], score["n"], score["ipc"]) == ("herding", 2, 1)
    assert score["model"] == "ConvNet-D2 width 4 instance"
    assert [e["mean"] for e in events(out, "score")] == [score["mean"]]


def test_select_forgetting(
    tmp_path: Path, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "forgetting"
    line = f"{SELECT} --method forgetting --experts {library} --epochs 2 --out {out} --no-score"
    succeed(line)
    told = capsys.readouterr().out
    assert "forgetting: training ConvNet-D2 width 4 instance on 1,295 images for 2 epochs" in told
    assert [e["epoch"] for e in events(out, "epoch")] == [1, 2]
    settings = SyntheticSet.load(out / "best").info["forgetting"]
    assert (settings["epochs"], settings["batch"], settings["lr"]) == (2, 128, 0.05)


def test_select_trains_the_network_it_is_given(tmp_path: Path) -> None:
    out = tmp_path / "mlp"
    succeed(f"{SELECT} --method forgetting --network mlp --epochs 1 --lr 0.1 --out {out}")
    assert SyntheticSet.load(out / "best").info["forgetting"]["network"] == "MLP width 128"
    assert [s["model"] for s in result_of(out, "select")["scores"]] == ["MLP width 128"]


def test_evaluate(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "evaluated"
    succeed(f"{EVALUATE} {run}/best --networks convnet,mlp --out {out}")
    told = capsys.readouterr().out
    scores = result_of(out, "evaluate")["scores"]
    assert [s["model"] for s in scores] == ["ConvNet-D2 width 4 instance", "MLP width 128"]
    for score in scores:
        assert (score["method"], score["split"], score["n"]) == ("mtt", "test", 2)
        assert f"{score['model']}: {score['mean']:.1f} +- {score['sd']:.1f} (n=2" in told
    assert [e["model"] for e in events(out, "score")] == [s["model"] for s in scores]
    own, other = scores
    assert (own["lr_origin"], other["lr_origin"]) == ("", "chosen on validation from 5")
    rows = [line.split() for line in told.splitlines() if line.startswith(("ConvNet", "MLP"))]
    assert f"{own['lr']:.3g}" in rows[-2]
    assert f"{other['lr']:.3g}*" in rows[-1]
    holds(told, "* learning rate chosen on validation from 5", f"`trajmatch report {out}` draws it")


def test_evaluate_keeps_what_it_finds_out_about_a_run_in_the_run(
    tmp_path: Path,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path(shutil.copytree(run, "run"))
    for word in ("run", "run/best"):
        succeed(f"{EVALUATE} --networks mlp {word}")
        assert (
            "results in run/evaluated; `trajmatch report run` draws it" in capsys.readouterr().out
        )
    result = result_of(out / "evaluated", "evaluate")
    assert result["settings"]["set"] == "run/best"
    assert result["set"] == {"fingerprint": SyntheticSet.load(out / "best").fingerprint}
    assert len(events(out / "evaluated", "score")) == 1  # found by the second, not trained again
    succeed("report run")
    (table,) = re.findall(r'<table class="networks">.*?</table>', page_of(out), re.S)
    holds(table, "ConvNet-D2 width 4 instance", "MLP width 128", "in evaluated.", "†")


def test_evaluate_of_a_set_that_is_in_no_run(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(run / "best", "best")
    succeed(f"{EVALUATE} best")
    assert result_of(Path("runs/evaluated"), "evaluate")["settings"]["set"] == "best"


def test_evaluate_as_it_was_judged_at_the_end(tmp_path: Path, run: Path) -> None:
    out = tmp_path / "evaluated"
    succeed(f"{EVALUATE} {run}/best --out {out}")
    assert result_of(out, "evaluate")["scores"][0] == read_result(run)["scores"][0]
    succeed(f"{EVALUATE} {run}/best --out {out} --split val --n 1")
    assert result_of(out, "evaluate")["scores"][0]["split"] == "val"
    assert [e["split"] for e in events(out, "score")] == ["test", "val"]


def test_report(tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    log, result = (out / "log.jsonl").read_bytes(), (out / "result.json").read_bytes()
    succeed(f"report {out}")
    assert capsys.readouterr().out == f"page: {out}/report.html\n"
    page = (out / "report.html").read_text()
    assert "<html" in page
    assert f"{read_result(out)['scores'][0]['mean']:.1f}" in page
    assert ((out / "log.jsonl").read_bytes(), (out / "result.json").read_bytes()) == (log, result)


def test_report_may_be_drawn_again_at_any_place(
    tmp_path: Path, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        succeed(f"report {run} --out page.html")
    assert "<html" in Path("page.html").read_text()
    Path("report.html").write_text("a page of somebody else's")
    out = Path(shutil.copytree(run, "run"))
    succeed(f"report {out}")
    assert "<html" in (out / "report.html").read_text()
    assert Path("report.html").read_text() == "a page of somebody else's"


def test_inspect(run: Path, library: Path, capsys: pytest.CaptureFixture[str]) -> None:
    succeed(f"inspect {library}")
    told = capsys.readouterr().out
    holds(told, "ConvNet-D2 width 4 instance", tiny.digits().fingerprint, "expert     1  val ")
    holds(told, "2 experts x 3 epochs", "lr=0.05", "verified: 2 experts")
    succeed(f"inspect {run}")
    holds(capsys.readouterr().out, "10 of 1x8x8, 1 per class, hard labels", "mtt", "verified")


def test_inspect_tells_of_no_step_size_where_none_was_learned(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = SyntheticSet.load(run / "best")
    for step_size in (made.step_size, None):
        place = tmp_path / str(step_size)
        dataclasses.replace(made, step_size=step_size).save(place)
        succeed(f"inspect {place}")
        assert ("step size" in capsys.readouterr().out) == (step_size is not None)


def test_a_run_that_holds_its_experts_is_inspected_whole(
    tmp_path: Path, run: Path, library: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(run, tmp_path / "run"))
    shutil.copytree(library, out / "experts")
    succeed(f"inspect {out} --no-verify")
    told = capsys.readouterr().out
    holds(told, "expert library", "distilled set")
    assert "2 experts, every row" not in told


def test_evaluate_with_a_ceiling(
    tmp_path: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Networks trained on all images beside those of the set: resumed, and on the run's page."""
    out = Path(shutil.copytree(run, tmp_path / "run"))
    line = f"{EVALUATE} {out} --n 1 --ceiling --ceiling-epochs 1"
    succeed(line)
    own, ceiling = result_of(out / "evaluated", "evaluate")["scores"]
    assert (own["method"], ceiling["method"], ceiling["ipc"]) == ("mtt", "ceiling", None)
    assert ceiling["protocol"].startswith("1 epochs, lr 0.01, momentum 0.9")
    assert sum(ceiling["tests"]) == len(tiny.digits().test)
    told = capsys.readouterr().out
    holds(told, f"{own['model']}, all training images  ", "all training images, test split: norm")
    succeed(line)
    assert len(events(out / "evaluated", "network")) == 2  # found, not trained again
    succeed(f"report {out}")
    reached = f"{ceiling['mean']:.1f}\N{NO-BREAK SPACE}% (n\N{NO-BREAK SPACE}=\N{NO-BREAK SPACE}1)"
    count = f"{len(tiny.digits().train):,}"
    holds(
        page_of(out), f"networks trained to the end on all {count} training images reach {reached}"
    )


# -- classes of very different size, or without images to test on --------------------------------


def test_classes_that_differ_are_told_of(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the start, beside the scores, and in result.json."""
    root = Path(shutil.copytree(pictures, tmp_path / "uneven"))
    for number in range(3, 12):
        (root / "train" / "red" / f"{number}.png").unlink()
    shutil.rmtree(root / "test" / "green")
    for number in range(1, 4):
        (root / "test" / "red" / f"{number}.png").unlink()
    out = tmp_path / "selected"
    succeed(f"{SELECT} --data {root} --network mlp --out {out}")
    told = capsys.readouterr().out
    holds(
        told,
        "warning: imbalanced classes: 11 training images of blue and 2 of red; the largest class "
        "is 45.8 % of them, so see the balanced accuracy",
        "warning: test images of 2 of 3 classes; none of green",
        "note: test images of 2 of 3 classes\n",
        "note: largest class 80.0 % of the test images\n",
    )
    result = read_result(out)
    (score,) = result["scores"]
    assert score["tests"] == [4, 0, 1]
    assert result["data"]["counts"] == {"train": [11, 11, 2], "val": [1, 1, 1], "test": [4, 0, 1]}
    blue, green, red = score["per_class"]
    assert green is None
    assert score["balanced"] == pytest.approx((blue + red) / 2)
    assert score["mean"] == pytest.approx((4 * blue + red) / 5)
    heads, row = (re.split("  +", line) for line in told.splitlines()[-5:-3])
    assert dict(zip(heads, row, strict=True))["balanced %"] == (
        f"{score['balanced']:.1f} +- {score['balanced_sd']:.1f}"
    )


def test_of_even_classes_nothing_is_told(
    tmp_path: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(f"{SELECT} --data {pictures} --network mlp --out {tmp_path}/selected")
    told = capsys.readouterr().out
    assert [word for word in ("warning", "note:", "balanced") if word in told] == []


# -- pictures of one's own, in color, whitened ---------------------------------------------------


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of 8x8 color pictures: 12 to train on and 4 to test, each mostly one color."""
    random, root = np.random.default_rng(0), tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 12), ("test", 4)):
        for channel, name in enumerate(("red", "green", "blue")):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                pixels[..., channel] += 120
                Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def colored(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A library of experts on them, and a run."""
    place = tmp_path_factory.mktemp("colored")
    data = f"--data {pictures} --whitening zca"
    succeed(f"{EXPERTS} {data} --batch 16 --out {place}/experts")
    succeed(f"{DISTILL} {data} --experts {place}/experts --out {place}/run")
    return place / "experts", place / "run"


def test_pictures_of_ones_own(tmp_path: Path, pictures: Path, colored: tuple[Path, Path]) -> None:
    experts, run = colored
    fingerprint = ExpertLibrary.open(experts).data["fingerprint"]
    assert result_of(experts, "experts", fingerprint=fingerprint)["library"]["whitening"] == "zca"
    scores = result_of(run, "distill", fingerprint=fingerprint)["scores"]
    assert all("ZCA" in score["brief"] for score in scores[:3])
    made = SyntheticSet.load(run / "best")
    assert made.whitening.name == "zca"
    assert made.classes == ("blue", "green", "red")
    assert {str(p.relative_to(run)) for p in (run / "best" / "images").rglob("*.png")} == {
        f"best/images/{name}/00000.png" for name in made.classes
    }
    for label, name in enumerate(made.classes):
        with Image.open(run / "best" / "images" / name / "00000.png") as picture:
            assert (picture.mode, picture.size) == ("RGB", (8, 8))
            pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
        assert torch.equal(pixels, made.pixels()[label])
        strongest = ("red", "green", "blue")[int(pixels.float().mean((1, 2)).argmax())]
        assert strongest == name
    succeed(f"{EVALUATE} {run}/best --data {pictures} --out {tmp_path}/evaluated")
    judged = result_of(tmp_path / "evaluated", "evaluate", fingerprint=fingerprint)["scores"]
    assert judged[0]["mean"] == scores[0]["mean"]


# -- what is refused -----------------------------------------------------------------------------

DISTILL_MISTAKES = {
    "experts too short": (
        "--max-start-epoch 6",
        ["max_start_epoch 6", "epoch 6", "have 3", "--max-start-epoch 3", "--epochs 6"],
    ),
    "whitening": ("--whitening zca", ["'normalize'", "'zca'", "--whitening normalize"]),
    "width": ("--width 8", ["width=4", "width=8", "leave the network out"]),
    "depth": ("--width 4 --depth 1", ["depth=2", "depth=1", "leave the network out"]),
    "network": ("--network mlp", ["convnet", "mlp", "leave the network out"]),
    "unknown network": ("--network convent", ["'convent'", "did you mean 'convnet'?"]),
    "val_fraction": (
        "--val-fraction 0.2",
        ["1295 training images", "1151 training images", "--val-fraction"],
    ),
    "size": ("--size 12", ["8x8x1", "12x12x1", "--size"]),
    "unknown data": ("--data digit", ["unknown data 'digit'", "did you mean 'digits'?", "folder"]),
    "no such data": ("--data no/where", ["no/where", "class folders"]),
    "no library": ("--experts no/library", ["no/library", "give the --out of `trajmatch experts`"]),
    "ipc": ("--ipc 126", ["ipc is 126", "has 125", "from 1 to 125"]),
    "batch_syn": ("--batch-syn 11", ["batch_syn is 11", "10 synthetic", "use 1 to 10"]),
    "augment": ("--augment flip_colour", ["'colour'", "did you mean 'color'?"]),
    "their augment": ("--evaluate.augment colour", ["'colour'", "did you mean 'color'?"]),
    "a rate": ("--lr-img -1", ["--lr-img is -1.0", "above 0"]),
}


@pytest.mark.parametrize("name", DISTILL_MISTAKES)
def test_distill_refuses(mistake: Mistake, tmp_path: Path, library: Path, name: str) -> None:
    words, expected = DISTILL_MISTAKES[name]
    holds(mistake(f"{DISTILL} --experts {library} --out {tmp_path}/run {words}"), *expected)
    assert not (tmp_path / "run").exists()


def test_data_that_the_experts_have_not_seen(
    mistake: Mistake, tmp_path: Path, library: Path, pictures: Path, colored: tuple[Path, Path]
) -> None:
    theirs = ExpertLibrary.open(colored[0]).data["fingerprint"]
    ours = tiny.digits().fingerprint
    said = mistake(f"{DISTILL} --experts {library} --data {pictures} --out {tmp_path}/run")
    holds(said, "trained on digits", f"this is {pictures.name}", ours, theirs, "--data")
    said = mistake(f"{SELECT} --experts {colored[0]} --out {tmp_path}/run")
    holds(said, f"trained on {pictures.name}", "this is digits", ours, theirs, "--data")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--syn-steps 4", ["syn_steps=3", "syn_steps=4", "another --out"]),
        ("--seed 7", ["seed=0", "seed=7", "another --out"]),
        ("--evaluate.epochs 3", ["evaluate.epochs=2", "evaluate.epochs=3", "another --out"]),
        ("--soft-labels", ["soft_labels=False", "soft_labels=True", "another --out"]),
    ],
)
def test_a_folder_that_holds_another_run(
    mistake: Mistake, run: Path, library: Path, words: str, expected: list[str]
) -> None:
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    holds(mistake(f"{DISTILL} --experts {library} --out {run} {words}"), str(run), *expected)
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_library_that_has_grown_is_the_same_for_a_run(
    capsys: pytest.CaptureFixture[str], run: Path, library: Path, tmp_path: Path
) -> None:
    grown = Path(shutil.copytree(library, tmp_path / "grown"))
    succeed(f"{EXPERTS} --experts 3 --out {grown}")
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    capsys.readouterr()
    succeed(f"{DISTILL} --experts {grown} --out {copy}")
    assert f"experts 0-1 of the 3 in {grown} are matched" in capsys.readouterr().out
    before, after = read_result(run), read_result(copy)
    assert after["library"]["experts"] == before["library"]["experts"] == 2
    assert after["scores"][:3] == before["scores"][:3]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--norm batch", ["batch norm", "running statistics", "--norm instance"]),
        ("--lr 0.1 --out LIBRARY", ["lr=0.05", "lr=0.1", "--lr 0.05", "another --out"]),
        ("--width 8 --out LIBRARY", ["width=4", "width=8", "--width 4", "another --out"]),
        ("--seed 3 --out LIBRARY", ["seed=0", "seed=3", "--seed 0", "another --out"]),
        ("--whitening zca --out LIBRARY", ["'normalize'", "'zca'", "--whitening normalize"]),
        ("--val-fraction 0.2 --out LIBRARY", ["1295", "1151", "--val-fraction"]),
        ("--augment colour", ["'colour'", "did you mean 'color'?"]),
        ("--depth 9", ["depth", "9", "8"]),
        ("--data digit", ["'digit'", "did you mean 'digits'?"]),
        ("--experts 0", ["--experts is 0", "at least 1"]),
    ],
)
def test_experts_refuses(
    mistake: Mistake, tmp_path: Path, library: Path, words: str, expected: list[str]
) -> None:
    before = sorted(library.iterdir())
    line = f"{EXPERTS} --out {tmp_path}/experts {words.replace('LIBRARY', str(library))}"
    holds(mistake(line), *expected)
    assert not (tmp_path / "experts").exists()
    assert sorted(library.iterdir()) == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--method herding", ["herding needs features", "--experts"]),
        ("--method hearding --experts LIBRARY", ["'hearding'", "did you mean 'herding'?"]),
        ("--method k-center", ["k-center needs features", "--experts"]),
        ("--method k-mean", ["'k-mean'", "did you mean 'k-means'?"]),
        ("--method forgetting --epochs 0", ["epochs is 0", "at least 1"]),
        ("--method forgetting --lr 0", ["lr is 0", "above 0"]),
        (
            "--method forgetting --network convnet --norm batch",
            ["running statistics", "--norm instance"],
        ),
        ("--method forgetting --epochs 1 --lr 1e20", ["diverged in epoch 1", "smaller --lr"]),
        ("--method forgetting --ipc 126", ["ipc is 126", "from 1 to 125"]),
        (
            "--method forgetting --experts LIBRARY --network mlp",
            ["convnet", "mlp", "leave the network out"],
        ),
        ("--ipc 126", ["ipc is 126", "has 125", "from 1 to 125"]),
        ("--ipc 0", ["--ipc is 0", "at least 1"]),
        ("--experts LIBRARY --whitening zca", ["'normalize'", "'zca'", "--whitening normalize"]),
        ("--experts LIBRARY --size 12", ["8x8x1", "12x12x1", "--size"]),
        ("--experts no/library", ["no/library", "trajmatch experts"]),
    ],
)
def test_select_refuses(
    mistake: Mistake, tmp_path: Path, library: Path, words: str, expected: list[str]
) -> None:
    line = f"{SELECT} --out {tmp_path}/chosen {words.replace('LIBRARY', str(library))}"
    holds(mistake(line), *expected)
    assert not (tmp_path / "chosen").exists()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("RUN/best --networks convnet,rensnet18", ["'rensnet18'", "did you mean 'resnet18'?"]),
        ("RUN/best --networks mlp:", ["--networks has 'mlp:'", "NAME or NAME:NORM"]),
        ("RUN/best --networks convnet:batsh", ["'batsh'", "did you mean 'batch'?"]),
        ("RUN/best --split tests", ["--split is 'tests'", "did you mean 'test'?"]),
        ("RUN/best --ceiling-epochs 5", ["ceiling-epochs is 5", "no --ceiling; add it"]),
        ("RUN/best --ceiling --ceiling-epochs 0", ["ceiling-epochs is 0", "at least 1"]),
        ("RUN/best --size 12", ["1x8x8", "1x12x12", "--size"]),
        ("RUN/best --augment colour", ["'colour'", "did you mean 'color'?"]),
        ("no/set", ["no/set", "is not a distilled set", "give a folder"]),
        ("", ["is missing", "trajmatch evaluate runs/ipc1 "]),
    ],
)
def test_evaluate_refuses(
    mistake: Mistake, tmp_path: Path, run: Path, words: str, expected: list[str]
) -> None:
    said = mistake(f"{EVALUATE} --out {tmp_path}/evaluated {words.replace('RUN', str(run))}")
    holds(said, *(word.replace("RUN", str(run)) for word in expected))
    assert not (tmp_path / "evaluated").exists()


def test_a_set_of_other_classes(
    mistake: Mistake, tmp_path: Path, run: Path, pictures: Path
) -> None:
    said = mistake(f"{EVALUATE} {run}/best --data {pictures} --out {tmp_path}/evaluated")
    holds(
        said,
        "0, 1, 2, 3, ... (10)",
        "blue, green, red",
        "the --data the set was made from (digits)",
    )


@pytest.mark.parametrize("command", ["experts", "distill", "select", "evaluate there"])
def test_out_that_is_a_file(mistake: Mistake, tmp_path: Path, command: str) -> None:
    (tmp_path / "taken").write_text("mine")
    said = mistake(f"{command} --out {tmp_path}/taken")
    holds(said, f"--out is '{tmp_path}/taken'", "is a file", "give a folder")
    assert (tmp_path / "taken").read_text() == "mine"


@pytest.mark.parametrize("command", ["inspect", "report"])
def test_folders_that_hold_nothing(mistake: Mistake, tmp_path: Path, command: str) -> None:
    for place in (tmp_path, tmp_path / "absent"):
        holds(mistake(f"{command} {place}"), str(place), "--out of")


# -- files that are not what they were -----------------------------------------------------------


def flip(path: Path, place: int = -3) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def cut(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def garble(path: Path) -> None:
    path.write_bytes(b"\x80\x04 a pickle, say, or a picture, and in any case no file of ours")


def age(path: Path) -> None:
    """As a later version would write it."""
    if path.suffix == ".json":
        body = read_json(path)
        write_json(path, {**body, "version" if "version" in body else "format": 2})
        return
    kind = "trajectory" if path.name.startswith("expert") else "distilled"
    file = open_tensors(path, kind=kind, version=1)
    tensors = {name: file.read(name) for name in file.names}
    save_tensors(path, tensors, kind=kind, version=2, metadata=file.metadata)


HARMS = {
    "flipped": (flip, ["make it again"]),
    "flipped header": (lambda path: flip(path, 40), ["make it again"]),
    "truncated": (cut, ["truncated", "make it again"]),
    "foreign": (garble, ["make it again"]),
    "newer": (age, ["newer trajmatch", "format 2", "upgrade trajmatch"]),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_harmed_expert(mistake: Mistake, tmp_path: Path, library: Path, harm: str) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    act, expected = HARMS[harm]
    for expert in (0, 1):  # whichever is drawn
        act(copy / f"expert_{expert:05d}.safetensors")
    name = f"{copy}/expert_00000.safetensors"
    holds(mistake(f"inspect {copy}"), name, *expected)
    # The last row holds the flipped bit: a segment of all three epochs ends there.
    line = f"{DISTILL} --experts {copy} --max-start-epoch 1 --expert-epochs 3 --out {tmp_path}/run"
    holds(mistake(line), f"{copy}/expert_0000", *expected)
    holds(mistake(f"{SELECT} --method herding --experts {copy} --out {tmp_path}/set"), name)


def test_a_harmed_library(mistake: Mistake, tmp_path: Path, library: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    document = read_json(copy / "library.json")
    lines = [f"inspect {copy}", f"{DISTILL} --experts {copy} --out {tmp_path}/run"]
    lines += [f"{EXPERTS} --out {copy}", f"{SELECT} --experts {copy} --out {tmp_path}/set"]
    harms: list[tuple[Callable[[], object], list[str]]] = [
        (lambda: cut(copy / "library.json"), ["library.json", "make it again"]),
        (
            lambda: write_json(copy / "library.json", {**document, "format": 2}),
            ["newer trajmatch", "format 2", "upgrade"],
        ),
        (
            lambda: write_json(
                copy / "library.json", {**document, "made": {**document["made"], "seed": 8}}
            ),
            ["library.json was altered", "restore it"],
        ),
        (lambda: flip(copy / "whitening.safetensors"), ["whitening.safetensors", "restore it"]),
    ]
    for harm, expected in harms:
        harm()
        for line in lines:
            holds(mistake(line), *expected)
        write_json(copy / "library.json", document)


def test_an_expert_of_another_library(mistake: Mistake, tmp_path: Path, library: Path) -> None:
    copy = Path(shutil.copytree(library, tmp_path / "library"))
    document = read_json(copy / "library.json")
    made = {**document["made"], "seed": 8}
    write_json(copy / "library.json", {**document, "made": made, "digest": digest(made)})
    for line in (f"inspect {copy}", f"{DISTILL} --experts {copy} --out {tmp_path}/run"):
        holds(mistake(line), "expert_00000.safetensors", "another library", "remove it")


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("file", ["distilled.safetensors", "distilled.json"])
def test_a_harmed_set(mistake: Mistake, tmp_path: Path, run: Path, file: str, harm: str) -> None:
    copy = Path(shutil.copytree(run / "best", tmp_path / "set"))
    act, expected = HARMS[harm]
    act(copy / file)
    # What a flip makes of a text is no telling: no JSON, another kind, or other words.
    words = [f"{copy}/{file}"] if file.endswith(".json") else [f"{copy}/{file}", *expected]
    words = expected if harm == "newer" else words
    for line in (f"inspect {copy}", f"{EVALUATE} {copy} --out {tmp_path}/evaluated"):
        said = mistake(line)
        holds(said, *words)
        assert "again" in said or "upgrade" in said
    assert not (tmp_path / "evaluated").exists()


def test_a_harmed_whitening_of_a_set(mistake: Mistake, tmp_path: Path, run: Path) -> None:
    copy = Path(shutil.copytree(run / "best", tmp_path / "set"))
    flip(copy / "whitening.safetensors")
    holds(mistake(f"{EVALUATE} {copy} --out {tmp_path}/x"), "whitening.safetensors", "again")
    (copy / "whitening.safetensors").unlink()
    holds(mistake(f"inspect {copy}"), "has no whitening.safetensors", "copy the whole folder")


@pytest.mark.parametrize("harm", ["flipped", "truncated", "foreign"])
def test_a_harmed_checkpoint(
    mistake: Mistake, tmp_path: Path, run: Path, library: Path, harm: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    act, expected = HARMS[harm]
    act(copy / "checkpoint.safetensors")
    said = mistake(f"{DISTILL} --experts {library} --out {copy} --iterations 6")
    holds(said, f"{copy}/checkpoint.safetensors", *expected)


def test_a_result_of_a_later_version(mistake: Mistake, tmp_path: Path, run: Path) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    write_json(
        copy / "result.json", {**json.loads((copy / "result.json").read_text()), "format": 2}
    )
    holds(mistake(f"report {copy}"), "newer trajmatch", "format 2", "upgrade")


# -- whose folder it is --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "command"),
    [
        ("demo", "run"),
        ("run digits-ipc1", "run"),
        ("run digits-ipc1 --dry-run", "run"),
        ("experts", "experts"),
        ("distill", "distill"),
        ("select", "select"),
        ("evaluate cifar10-ipc1", "evaluate"),
        ("study init", "study init"),
        ("compare", "compare"),
        ("import buffer.pt", "import"),
        ("export cifar10-ipc1 --to npz", "export"),
    ],
)
def test_the_folder_of_another_command_is_refused(
    tmp_path: Path, mistake: Mistake, line: str, command: str
) -> None:
    """Also where that command was killed before its first file."""
    out, other = tmp_path / "run", "select" if command == "distill" else "distill"
    out.mkdir()
    write_json(out / ".trajmatch.json", {"command": other})
    before = {path: path.read_bytes() for path in out.iterdir()}
    said = mistake(f"{line} --device cpu --out {out}")
    assert f"{out} is a folder of `trajmatch {other}`, and `trajmatch {command}` would" in said
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_finished_run_is_not_written_over_by_select(run: Path, mistake: Mistake) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert "a folder of `trajmatch distill`" in mistake(f"select --method random --out {run}")
    assert "a folder of `trajmatch distill`" in mistake(f"export {run}/best --to npz --out {run}")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "line", ["experts", "distill", "select", "study init", "compare", "run digits-ipc1", "import x"]
)
def test_out_in_the_folder_of_the_images_is_refused(
    tmp_path: Path, mistake: Mistake, line: str
) -> None:
    (tmp_path / "photos" / "cat").mkdir(parents=True)
    said = mistake(f"{line} --data {tmp_path}/photos --out {tmp_path}/photos/run")
    assert "is in the folder of the images" in said
    assert [path.name for path in (tmp_path / "photos").iterdir()] == ["cat"]


def test_a_refused_command_leaves_no_folder(tmp_path: Path, mistake: Mistake) -> None:
    assert "no such file or folder" in mistake(f"select --data nothing/x --out {tmp_path}/a/b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="no /proc")
def test_out_that_cannot_be_created_is_one_line_before_any_work(mistake: Mistake) -> None:
    said = mistake("select --device cpu --out /proc/x")
    assert "'/proc/x': No such file or directory; see that /proc/x can be written, or give" in said
