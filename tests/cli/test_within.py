"""`trajmatch run` without a recipe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from trajmatch import cli
from trajmatch.cli.within import given_settings

Mistake = Callable[[list[str]], str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mistake(capsys: pytest.CaptureFixture[str]) -> Mistake:
    """What is said of a line that is refused."""

    def said(words: list[str]) -> str:
        assert cli.main(words) == 2
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        (line,) = captured.err.strip().splitlines()[-1:]
        return line

    return said


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("run", ["neither a RECIPE nor --data", "name a recipe", "--budget"]),
        ("run --data digits --budget soon", ["'soon' is no length of time", "1h30m"]),
        ("run --data digits --budget 0s", ["'0s' is no time to work in"]),
        ("run digits-ipc1 --budget 5m", ["--budget is 5m", "digits-ipc1", "leave one of them out"]),
        ("run --data digits --method dm", ["method is dm", "only mtt is planned", "name a recipe"]),
        ("run --data digits --experts lib", ["--experts is lib", "leave it out"]),
        ("run --data digits --experts.epoch=3", ["--experts.epoch", "--experts.epochs"]),
        ("run --data nowhere --budget 5s", ["nowhere"]),
    ],
)
def test_what_is_wrong_is_said_before_anything_starts(
    mistake: Mistake, here: Path, line: str, words: list[str]
) -> None:
    said = mistake(line.split())
    assert [word for word in words if word not in said] == [], said
    assert not (here / "runs").exists()


def test_the_settings_of_a_line() -> None:
    line = "--data x --ipc=3 --experts.batch 7 --no-soft-labels --lr_img 0.1 --evaluate.n 2 --out y"
    assert set(given_settings(line.split())) == {
        "data.data", "distill.ipc", "experts.batch", "distill.soft_labels", "distill.lr_img",
        "evaluate.n",
    }  # fmt: skip


@pytest.mark.slow
def test_a_dry_run_says_what_is_planned_and_writes_nothing(
    capsys: pytest.CaptureFixture[str], here: Path
) -> None:
    line = "run --device cpu --data digits --budget 1s --dry-run --workers 1 --width 4"
    assert cli.main(line.split()) == 0
    said = capsys.readouterr().out
    for words in ("augmentation without flip", "experts of", "fresh networks are trained for"):
        assert words in said
    assert not (here / "runs").exists()


@pytest.mark.slow
def test_photographs_to_a_page(capsys: pytest.CaptureFixture[str], here: Path) -> None:
    line = (
        "run --device cpu --data digits --ipc 2 --budget 10s --workers 1 --width 4 "
        "--experts.experts 2 --evaluate.n 2 --no-test"
    )
    assert cli.main(line.split()) == 0
    said = capsys.readouterr().out
    assert "the page: runs/digits/report.html" in said
    plan = json.loads((here / "runs/digits/plan.json").read_text())
    assert plan["request"]["ipc"] == 2
    result = json.loads((here / "runs/digits/result.json").read_text())
    assert {score["split"] for score in result["scores"]} == {"val"}
    assert result["settings"]["network"]["width"] == 4
    assert cli.main(line.split()) == 0  # nothing is left to do
