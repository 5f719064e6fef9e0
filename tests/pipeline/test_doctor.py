"""The doctor's checks: each is found where it holds, and not where it does not."""

from __future__ import annotations

import dataclasses
import math

import pytest

from trajmatch.cli import main
from trajmatch.errors import DataError
from trajmatch.pipeline.doctor import Evidence, Finding, examine, findings
from trajmatch.storage import JsonlTracker
from trajmatch.storage.results import IterationLine, LibrarySummary, Score, ValidationLine


def iterations(losses, sizes=None, skipped=()):
    sizes = sizes or [0.01] * len(losses)
    return tuple(
        IterationLine(i + 1, loss, size, 0.3, i in skipped, 0.1)
        for i, (loss, size) in enumerate(zip(losses, sizes, strict=True))
    )


def validations(*means, sd=1.0):
    return tuple(ValidationLine(50 * (i + 1), mean, sd, 2) for i, mean in enumerate(means))


def score(method, mean):
    return Score(
        method=method, model="ConvNet", ipc=1, n=5, mean=mean, sd=1.0, protocol="", split="test",
        values=(mean,) * 5,
    )  # fmt: skip


FALLING = [0.4 + 0.4 * math.exp(-i / 20) for i in range(100)]
GOOD = Evidence(
    iterations=iterations(FALLING),
    validations=validations(80.0, 85.0, 85.3),
    scores=(score("mtt", 85.0), score("random", 60.0), score("herding", 70.0)),
    library=LibrarySummary(epochs=20, accuracy_mean=98.0, accuracy_sd=0.3),
    beyond=0.05,
)

CASES = {
    "below-real-images": {
        "scores": (score("mtt", 65.0), score("random", 60.0), score("herding", 70.0))
    },
    "never-better": {
        "validations": (ValidationLine(0, 85.0, 1.0, 2), *validations(80.0, 84.0, 84.5))
    },
    "loss-above-1": {"iterations": iterations([1.5] * 50 + [1.2] * 50)},
    "skipped": {"iterations": iterations(FALLING, skipped=range(40, 52))},
    "step-size-fell": {"iterations": iterations(FALLING, [0.01 * 0.98**i for i in range(100)])},
    "loss-flat": {"iterations": iterations([0.97] * 100)},
    "experts-short": {"library": LibrarySummary(epochs=3, accuracy_mean=86.0)},
    "saturated": {"beyond": 0.7},
    "still-rising": {"validations": validations(70.0, 75.0, 80.0)},
    "fell-back": {"validations": validations(80.0, 88.0, 82.0)},
}


def test_a_run_that_goes_well_has_no_findings():
    assert findings(GOOD) == []


@pytest.mark.parametrize("name", CASES)
def test_each_check_finds_its_fault(name):
    found = findings(dataclasses.replace(GOOD, **CASES[name]))
    assert name in [one.name for one in found]


@pytest.mark.parametrize("name", [name for name in CASES if name != "loss-above-1"])
def test_each_fault_is_found_by_its_check_alone(name):
    found = findings(dataclasses.replace(GOOD, **CASES[name]))
    assert [one.name for one in found] == [name]


def test_the_numbers_are_in_the_line():
    changed = dataclasses.replace(GOOD, **CASES["step-size-fell"])
    (found,) = findings(changed)
    assert str(found).startswith("the step size fell from 0.01 to 0.00135")
    assert "--step-size 0.005" in found.mend


def test_a_log_of_few_iterations_says_nothing():
    assert findings(Evidence(iterations=iterations([3.0] * 10))) == []


def test_a_method_without_step_size_has_no_loss_above_1():
    lines = tuple(IterationLine(i, 20.0 - i / 10, None, 1.0, False, 0.1) for i in range(100))
    assert findings(Evidence(iterations=lines)) == []


def test_the_command_prints_a_line_a_finding(tmp_path, capsys):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    for step in range(1, 41):
        values = {"loss": 0.97, "step_size": 0.01, "grad_norm": 0.1, "skipped": 0, "seconds": 0.1}
        tracker.log(step, values)
    tracker.close()
    assert examine(tmp_path) == [
        Finding(
            "loss-flat",
            "the loss does not fall (median 0.97 at the beginning, 0.97 at the end)",
            "a larger --step-size or more --syn-steps",
        )
    ]
    assert main(["doctor", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("loss-flat: the loss does not fall (median 0.97")


def test_a_folder_without_a_run_is_refused(tmp_path, capsys):
    with pytest.raises(DataError, match=r"holds no run \(no log\.jsonl\)"):
        examine(tmp_path)
    assert main(["doctor", str(tmp_path)]) == 2
    assert "give the --out of distill or run" in capsys.readouterr().err
