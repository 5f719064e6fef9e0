"""The page of a tuning: the history, what matters, the trials, the command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, Parsed

from trajmatch.errors import FileFormatError
from trajmatch.report.figures.history import History
from trajmatch.report.pages.tuning import write_tuning_report
from trajmatch.storage.files import write_json
from trajmatch.storage.results import TuningResult, result_from_json

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")


def trial(number: int, mean: float | None, **more: Any) -> dict[str, Any]:
    row = {
        "number": number,
        "state": "complete",
        "settings": {"lr_img": 0.1 * (number + 1), "syn_steps": 20, "batch_syn": None},
        "mean": mean,
        "sd": 1.5,
        "n": 2,
        "iteration": 100,
        "error": "",
        "seconds": 61.0,
    }
    return {**row, **more}


def result(**more: Any) -> dict[str, Any]:
    return {
        "format": 1,
        "command": "tune",
        "settings": {"trials": 5, "distill": {"method": "mtt", "ipc": 1}},
        "seed": 0,
        "scores": [],
        "data": {"name": "digits"},
        "network": "ConvNet-D2",
        "library": {"path": "runs/experts", "experts": 2, "epochs": 3},
        "ranges": {
            "lr_img": {"low": 0.01, "high": 1.0, "log": True, "integer": False},
            "syn_steps": {"choices": [20]},
            "batch_syn": {"choices": [10, 20]},
        },
        "trials": [
            trial(0, 60.0),
            trial(1, 70.5),
            trial(2, 40.0, state="pruned", sd=None),
            trial(3, None, state="failed", sd=None, error=f"the run has diverged {HOSTILE}"),
            trial(4, 65.0),
        ],
        "best": 1,
        "importance": {"syn_steps": 0.25, "lr_img": 0.75},
        **more,
    }


def read(**more: Any) -> TuningResult:
    found = result_from_json(result(**more))
    assert isinstance(found, TuningResult)
    return found


def test_the_page(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", result())
    page = write_tuning_report(tmp_path)
    assert page == tmp_path / "index.html"
    text = page.read_text(encoding="utf-8")
    Parsed(text)
    assert HOSTILE not in text
    assert text.index('<th scope="row">lr_img') < text.index('<th scope="row">syn_steps')
    assert "75.0 %" in text
    assert "70.5<small> ± 1.5 %" in text.replace("\N{NO-BREAK SPACE}", " ")  # never without its sd
    assert "best.toml --experts runs/experts --out" in text
    assert "trial 3: the run has diverged" in text
    assert "stopped at 100" in text
    assert "0.01 to 1, on a logarithmic scale" in text
    assert "10 or 20" in text
    assert text.count('<g class="dot') == 4


def test_few_trials_say_nothing_of_importance(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", result(trials=[trial(0, 60.0)], best=0, importance={}))
    text = write_tuning_report(tmp_path).read_text(encoding="utf-8")
    assert "at least 4 are needed" in text
    assert "the recipe’s own" in text


def test_the_best_so_far_counts_completed_trials_alone() -> None:
    trials = (trial(0, 60.0), trial(1, 90.0, state="pruned"), trial(2, 50.0), trial(3, 70.0))
    figure = History(read(trials=list(trials), best=3).trials)
    assert [(one.number, mean) for one, mean in figure.best()] == [(0, 60), (2, 60), (3, 70)]
    assert [row["best"] for row in figure.frame()] == [60.0, None, 60.0, 70.0]
    assert "1 was stopped early" in figure.summary()


def test_the_summary_in_words() -> None:
    assert read().summary() == (
        "5 trials, 1 of them stopped early, 1 failed; best: trial 1, validation accuracy 70.5 +- "
        "1.5 % (n=2); the recipe's own settings: 60.0 +- 1.5 % (n=2)"
    )
    own = read(trials=[trial(0, 60.0)], best=0).summary()
    assert own.endswith("60.0 +- 1.5 % (n=2), which has the recipe's own settings")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"best": 2}, "best is 2, which is no completed trial"),
        ({"trials": [trial(0, 60.0, state="odd")]}, r"trials\[0\]\.state is 'odd'"),
        ({"trials": [trial(0, 160.0)]}, r"trials\[0\]\.mean is 160"),
        ({"importance": {"lr_img": 2.0}}, r"importance\.lr_img is 2\.0"),
    ],
)
def test_damaged_results(more: dict[str, Any], said: str) -> None:
    with pytest.raises(FileFormatError, match=said):
        read(**more)


def test_other_results_have_other_pages(tmp_path: Path) -> None:
    write_json(tmp_path / "result.json", {"format": 1, "command": "distill", "scores": []})
    with pytest.raises(FileFormatError, match="not of a tuning"):
        write_tuning_report(tmp_path)
