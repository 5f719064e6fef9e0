"""--no-test: settings are chosen on validation images, and no test image is looked at."""

from __future__ import annotations

import functools
from pathlib import Path

import pytest

import tiny
from trajmatch import cli
from trajmatch.evaluation import batch
from trajmatch.pipeline.cost import estimate as cost
from trajmatch.pipeline.cost.done import Done
from trajmatch.pipeline.cost.iteration import Iteration
from trajmatch.pipeline.cost.measure import Speeds
from trajmatch.pipeline.recipe import Recipe
from trajmatch.storage import read_result
from trajmatch.synthetic import SyntheticSet

DISTILL = f"distill --device cpu {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS}"
EXPERT_WORDS = (
    tiny.EXPERT_WORDS.replace("--experts", "--experts.experts")
    .replace("--epochs", "--experts.epochs")
    .replace("--batch", "--experts.batch")
    .replace("--lr", "--experts.lr")
)
RUN = (
    f"run digits-ipc1 --device cpu {tiny.NETWORK_WORDS} {EXPERT_WORDS} {tiny.DISTILL_WORDS} "
    f"{tiny.SCORE_WORDS}"
)


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The splits that sets are evaluated on, in order; in a folder of the test's own."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.chdir(tmp_path)
    speeds = Speeds(image=1e-3, evaluation=0.01, iteration=Iteration(0.5, 10**6, False, "timed"))
    known = functools.partial(cost.estimate, measure=lambda *given: speeds)
    monkeypatch.setattr(cost, "estimate", known)
    splits: list[str] = []
    original = batch.split_of

    def spy(data: object, name: str) -> object:
        splits.append(name)
        return original(data, name)

    monkeypatch.setattr(batch, "split_of", spy)
    return splits


@pytest.mark.slow
@pytest.mark.parametrize("command", ["distill", "run"])
def test_a_run_that_is_not_tested_and_then_is(
    command: str, looked_at: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("jinja2")
    line = f"{DISTILL} --experts {tiny.library().path} --out out"
    line = line if command == "distill" else f"{RUN} --out out"
    assert cli.main([*line.split(), "--no-test"]) == 0
    said = capsys.readouterr().out
    assert looked_at == ["val"]
    assert "not tested (--no-test): the accuracy is on validation images" in said
    assert "`trajmatch evaluate out` tests it" in said
    (score,) = read_result("out")["scores"]
    assert (score["method"], score["split"], score["n"]) == ("mtt", "val", 2)
    assert cli.main(["report", "out"]) == 0
    page = Path("out/report.html").read_text(encoding="utf-8")
    assert "validation accuracy of 2 fresh networks" in page
    assert "Not tested: the test images have not been looked at." in page
    assert "nor have images beside it: trajmatch evaluate out tests it" in page
    recipe = Recipe.from_dict(read_result("out")["settings"]) if command == "run" else None
    if recipe is not None:
        assert Done.of(Path("out"), recipe).networks == 0
    best = SyntheticSet.load(Path("out/best")).fingerprint

    assert cli.main(line.split()) == 0
    assert looked_at == ["val", "test"]
    scores = read_result("out")["scores"]
    assert [one["method"] for one in scores][:3] == ["mtt", "random", "herding"]
    assert {one["split"] for one in scores} == {"test"}
    assert SyntheticSet.load(Path("out/best")).fingerprint == best
    if recipe is not None:
        assert Done.of(Path("out"), recipe).networks == 2


@pytest.mark.slow
def test_the_published_accuracy_does_not_stand_beside_validation(
    looked_at: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The published numbers are of test images."""
    text = 'name = "mine"\n[published]\naccuracy = 46.3\nsource = "a paper"\n'
    text += "[network]\ndepth = 2\nwidth = 4\n[experts]\nexperts = 1\nepochs = 1\n"
    text += "[distill]\niterations = 1\nsyn_steps = 1\nexpert_epochs = 1\nmax_start_epoch = 1\n"
    text += "[evaluate]\nn = 1\nepochs = 1\n"
    Path("mine.toml").write_text(text, encoding="utf-8")
    for words, published in (("--no-test", False), ("", True)):
        assert cli.main(f"run mine.toml --device cpu --out out {words}".split()) == 0
        assert ("published for these settings" in capsys.readouterr().out) == published
