"""Typed results: the files of version 0.1 load, and whatever is damaged is refused in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trajmatch.errors import FileFormatError
from trajmatch.storage.results import (
    Cell,
    EvaluationResult,
    RunLog,
    RunResult,
    Sample,
    Score,
    StudyResult,
    Trained,
    load_log,
    load_result,
    result_from_json,
)
from trajmatch.storage.results.classes import is_imbalanced

PUBLISHED = Path(__file__).parents[2] / "docs" / "results"
RESULTS = sorted(path for path in PUBLISHED.glob("*.json") if path.stem != "compact-zca")


def published(name: str) -> Any:
    return json.loads((PUBLISHED / f"{name}.json").read_text(encoding="utf-8"))


# -- version 0.1 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_published_results_load(path: Path) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    result = result_from_json(values, str(path))
    assert [score.mean for score in result.scores] == [s["mean"] for s in values.get("scores", [])]
    assert isinstance(result, StudyResult) == ("cells" in values)
    if isinstance(result, StudyResult):
        assert [cell.sample.mean for cell in result.cells] == [
            cell["scores"]["hard"]["mean"] for cell in values["cells"]
        ]
        assert result.full.n == values["full"]["n"]


def test_a_run_of_version_0_1() -> None:
    result = result_from_json(published("cifar10-ipc1-width128"))
    assert type(result) is RunResult
    assert result.resolved["keep"] == 50  # `decisions` in the file
    assert result.data.train == 47500
    assert result.data.classes[0] == "airplane"
    assert (result.library.experts, result.library.n) == (14, 14)
    assert (result.best_iteration, result.last_iteration) == (750, 900)
    assert result.cost.seconds == 574.462
    assert result.other.keys() == {"best_validation", "distill_seconds", "validation_over_time"}


def test_resolved_settings_under_their_new_name() -> None:
    assert result_from_json({"format": 1, "resolved": {"keep": 3}}).resolved == {"keep": 3}


def test_a_comparison_of_version_0_1() -> None:
    result = result_from_json(published("compare-digits"))
    assert (result.seeds, len(result.cells), result.study.page) == (3, 84, "comparison")
    cell = next(cell for cell in result.cells if cell.variant == "herding-ipc1")
    assert cell.at == {"ipc": 1, "method": "herding"}
    assert cell.own_score is cell.scores["hard"]
    assert [score.model for score in cell.networks] == ["MLP width 128", "LeNet"]
    assert cell.lrs == 27.7137


def test_an_evaluation_knows_its_set() -> None:
    found = result_from_json({"format": 1, "command": "evaluate", "set": {"fingerprint": "ab"}})
    assert isinstance(found, EvaluationResult)
    assert found.fingerprint == "ab"


def test_a_score_goes_to_json_and_back() -> None:
    score = Score.of([61.0, 63.0], method="mtt", model="MLP", ipc=1, protocol="p", split="test")
    assert Score.from_json(json.loads(json.dumps(score.to_json()))) == score


def test_a_sample_of_no_number_and_of_one() -> None:
    assert Sample.of([]) == Sample(None, None, 0, ())
    assert Sample.of([2.0]) == Sample(2.0, None, 1, (2.0,))


# -- damage --------------------------------------------------------------------------------------

SCORE = {"method": "mtt", "n": 2, "mean": 60.0, "sd": 1.0, "values": [59.0, 61.0]}
CELL = {"variant": "a", "at": {"x": 1}, "seed": 0, **SCORE}
SCRIPT = "<script>alert(1)</script>"


def deep(levels: int) -> dict[str, Any]:
    value: dict[str, Any] = {}
    for _ in range(levels):
        value = {"a": value}
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": [SCORE | {"mean": SCRIPT}]}, r"scores\[0\]\.mean is '<script>.* 0 to 100"),
        ({"scores": [SCORE, SCORE | {"mean": 101}]}, r"scores\[1\]\.mean is 101 where a number"),
        ({"scores": [SCORE | {"mean": None}]}, r"scores\[0\]\.mean is None where a number"),
        ({"scores": [SCORE | {"mean": True}]}, r"mean is True where"),
        ({"scores": [SCORE | {"mean": math.nan}]}, r"mean is nan where"),
        ({"scores": [SCORE | {"mean": 10**400}]}, r"mean is a huge number where"),
        ({"scores": [SCORE | {"n": 0}]}, r"n is 0 where a whole number of at least 1 belongs"),
        ({"scores": [SCORE | {"n": 2.5}]}, r"n is 2\.5 where a whole number"),
        ({"scores": [SCORE | {"sd": -1.0}]}, r"sd is -1\.0 where a number from 0 to 100"),
        ({"scores": [SCORE | {"sd": 1e308}]}, r"sd is 1e\+308 where a number from 0 to 100"),
        ({"scores": [SCORE | {"values": [1.0, "2"]}]}, r"values is a list where a list with"),
        ({"scores": ["not a score"]}, r"scores\[0\] is 'not a score' where an object belongs"),
        ({"scores": {"a": 1}}, r"scores is an object where a list belongs"),
        ({"settings": "all"}, r"settings is 'all' where an object belongs"),
        ({"settings": deep(40)}, r"settings is nested more than 24 levels deep"),
        ({"what": deep(40)}, r"other is nested more than 24 levels"),
        ({"data": {"classes": [1, 2]}}, r"data\.classes is a list where a list of texts"),
        ({"data": {"train": -1}}, r"data\.train is -1 where"),
        ({"library": {"accuracy_mean": 300}}, r"library\.accuracy_mean is 300 where"),
        ({"seconds": -3}, r"seconds is -3 where"),
        ({"best_iteration": SCRIPT}, r"best_iteration is '<script>"),
        ({"versions": {"torch": []}}, r"versions\.torch is a list where a text or number"),
        ({"study": {}}, r"the study has no cells"),
        ({"study": {}, "cells": [CELL | {"at": {"x": {}}}]}, r"cells\[0\]\.at\.x is an object"),
        ({"study": {}, "cells": [CELL | {"n": None}]}, r"cells\[0\]\.n is None where"),
        ({"study": {}, "cells": [CELL | {"scores": {"hard": 3}}]}, r"scores\.hard is 3 where"),
        ({"study": {}, "cells": [CELL | {"makes": "no"}]}, r"makes is 'no' where true or false"),
        ({"format": 2}, r"newer trajmatch \(format 2, this one reads up to 1\); upgrade"),
        ({"format": "1"}, r"format is '1' where"),
    ],
)
def test_damage_is_refused_in_one_line(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "result.json"
    path.write_text(json.dumps({"format": 1, "command": "run", "scores": [SCORE]} | change))
    with pytest.raises(FileFormatError, match=message) as refused:
        load_result(tmp_path)
    assert str(refused.value).startswith(str(path))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["[]", "3", '{"a": 1}', '{"format": 1', "[" * 100_000])
def test_what_is_no_result_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"result\.json"):
        load_result(tmp_path)


def test_a_page_of_measurements_is_no_result() -> None:
    with pytest.raises(FileFormatError, match="not a result of trajmatch"):
        result_from_json(published("compact-zca"))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=5,
)
ENTRIES = st.sampled_from(
    ["scores", "settings", "data", "library", "network", "versions", "cells", "study", "full"]
)


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(ENTRIES, JSON), JSON)
def test_any_json_is_read_or_refused(values: dict[str, Any], cell: Any) -> None:
    for read, found in ((result_from_json, {"format": 1, **values}), (Cell.from_json, cell)):
        message = refusal(read, found)
        assert message is None or "\n" not in message


def refusal(read: Callable[[Any], Any], values: Any) -> str | None:
    """The message with which `read` refuses `values`; None where it reads them."""
    try:
        read(values)
    except FileFormatError as error:
        return str(error)
    return None


# -- the log -------------------------------------------------------------------------------------


def test_the_log_by_kind_of_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    lines = [
        {"time": 1.0, "step": 2, "loss": 0.5, "step_size": 0.01, "skipped": 0.0, "seconds": 0.1},
        {"time": 1.1, "step": 1, "loss": None, "skipped": 1.0},
        {"time": 1.2, "step": 2, "val_mean": 60.0, "val_sd": 1.0, "val_n": 2},
        {"time": 1.3, "event": "resumed", "step_from": 1},
        {"time": 1.4, "step": 2, "loss": 0.4, "skipped": 0.0},
        {"time": 1.5, "event": "network", "of": "ab", "number": 0, "percent": 5.0, "finite": False},
        {"time": 1.6, "event": "epoch", "expert": 0, "epoch": 1, "train_loss": 2.3},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    log = load_log(path)
    assert [(line.step, line.loss, line.skipped) for line in log.iterations] == [
        (1, None, True),
        (2, 0.4, False),  # logged twice: the later
    ]
    assert [(line.step, line.mean, line.n) for line in log.validations] == [(2, 60.0, 2)]
    assert [line.result for line in log.networks] == [Trained(5.0, False)]
    assert [(line.expert, line.epoch) for line in log.epochs] == [(0, 1)]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"step": 1, "loss": SCRIPT}, r"line 2: loss is '<script>.* where a finite number"),
        ({"step": "1", "loss": 0.5}, r"line 2: step is '1' where"),
        ({"step": 1, "val_mean": 120.0}, r"line 2: val_mean is 120\.0 where"),
        ({"event": "network", "number": 0, "percent": None}, r"line 2: percent is None where"),
        ({"event": 3}, r"line 2: event is 3 where a text"),
    ],
)
def test_a_damaged_line_is_named(line: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        RunLog.from_json([{"step": 0, "loss": 1.0}, line])


# -- what a score is of --------------------------------------------------------------------------

KNOWN = {"model": "ConvNet", "ipc": 1, "protocol": "500 epochs, lr 0.01", "split": "test"}


def test_a_score_by_class_is_read_as_it_was_written() -> None:
    score = Score.of(
        [60.0, 62.0], method="dm", tests=(8, 2, 0), per_class=(70.0, 25.0, None), balanced=47.5,
        balanced_sd=2.5, **KNOWN,
    )  # fmt: skip
    written = json.loads(json.dumps(score.to_json()))
    assert written["per_class"] == [70.0, 25.0, None]
    assert Score.from_json(written) == score
    assert score.notes == (
        "test images of 2 of 3 classes",
        "largest class 80.0 % of the test images",
        "balanced accuracy 47.5 +- 2.5",
    )
    assert str(score).endswith(f", {', '.join(score.notes)})")


def test_a_score_without_numbers_by_class_says_nothing_of_them() -> None:
    old = {"method": "mtt", "n": 1, "mean": 60.0, "values": [60.0], **KNOWN}
    score = Score.from_json(old)
    assert (score.tests, score.per_class, score.balanced, score.notes) == ((), (), None, ())


def test_what_version_01_called_full_data_are_experts() -> None:
    about = {**KNOWN, "protocol": "4 epochs on all training images, lr 0.02", "n": 1, "mean": 38.6}
    score = Score.from_json({"method": "full data", **about})
    assert (score.method, score.label) == ("experts", "experts (4 epochs)")
    assert Score.from_json({"method": "ceiling", **about}).label == "all training images"
    assert Score.from_json({"method": "mtt", **about}).label == "mtt"


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"tests": [1, -1]}, r"tests is a list where a list of whole numbers of at least 0"),
        ({"tests": [1, 2.5]}, r"tests is a list where a list of whole numbers"),
        ({"tests": [1, 1], "per_class": [101.0, None]}, r"per_class is a list where .* 0 to 100"),
        ({"tests": [1, 1], "per_class": [50.0]}, r"per_class is a list where a list of 2 numbers"),
        ({"balanced": 101.0}, r"balanced is 101.0 where a number from 0 to 100"),
    ],
)
def test_damaged_numbers_by_class_are_refused(entries: dict[str, Any], message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        Score.from_json({"method": "mtt", "n": 1, "mean": 60.0, **entries})


@pytest.mark.parametrize(
    ("counts", "imbalanced"),
    [((150, 100), False), ((151, 100), True), ((100, 0), False), ((0, 0), False), ((4, 200), True)],
)
def test_when_classes_are_imbalanced(counts: tuple[int, ...], imbalanced: bool) -> None:
    assert is_imbalanced(counts) == imbalanced


def test_images_of_each_class_are_read_from_a_result() -> None:
    values = {"data": {"name": "d", "counts": {"train": [5, 3], "test": [2, 2]}}}
    result = result_from_json({"format": 1, "command": "run", **values})
    assert result.data is not None
    assert result.data.counts == {"train": (5, 3), "test": (2, 2)}
    values["data"]["counts"]["train"] = ["<script>"]  # type: ignore[index]
    with pytest.raises(FileFormatError, match=r"data\.counts\.train is a list where"):
        result_from_json({"format": 1, "command": "run", **values})
