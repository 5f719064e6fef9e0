"""Numbers out: the log survives what happens to runs; adapters are tested with stub libraries."""

from __future__ import annotations

import json
import re
import sys
import types

import pytest
import torch

from trajmatch.errors import FileFormatError, MissingExtraError, SettingError
from trajmatch.runtime.progress import Progress
from trajmatch.storage import (
    JsonlTracker,
    LogProgress,
    TensorboardTracker,
    Tracker,
    WandbTracker,
    open_tracker,
    read_log,
    read_result,
    write_result,
)


def without_time(path):
    return [{k: v for k, v in record.items() if k != "time"} for record in read_log(path)]


def test_a_line_is_on_disk_before_the_call_returns(tmp_path):
    tracker = JsonlTracker(tmp_path / "run" / "log.jsonl")
    tracker.log(3, {"loss": 0.5, "grad_norm": torch.tensor(2.0)})
    tracker.event("resumed", iteration=3)
    assert without_time(tracker.path) == [
        {"step": 3, "loss": 0.5, "grad_norm": 2.0},
        {"event": "resumed", "iteration": 3},
    ]
    tracker.close()


def test_numbers_that_json_lacks_become_null(tmp_path):
    tracker = JsonlTracker(tmp_path / "log.jsonl")
    tracker.log(
        0, {"loss": float("nan"), "list": [1.0, float("inf")], "t": torch.tensor(-torch.inf)}
    )
    tracker.close()
    assert without_time(tracker.path) == [{"step": 0, "loss": None, "list": [1.0, None], "t": None}]
    assert "NaN" not in tracker.path.read_text()


def test_a_line_torn_by_a_kill_is_not_read_and_is_cut_on_reopening(tmp_path):
    path = tmp_path / "log.jsonl"
    tracker = JsonlTracker(path)
    tracker.log(1, {"loss": 1.0})
    tracker.close()
    with path.open("a") as file:
        file.write('{"time": 2, "step": 2, "lo')
    assert [r["step"] for r in read_log(path)] == [1]
    tracker = JsonlTracker(path, append=True)
    tracker.log(2, {"loss": 0.5})
    tracker.close()
    assert without_time(path) == [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]
    assert list(tmp_path.iterdir()) == [path]


def test_resuming_drops_the_steps_that_will_be_logged_again(tmp_path):
    path = tmp_path / "log.jsonl"
    tracker = JsonlTracker(path)
    for step in range(5):
        tracker.log(step, {"loss": float(step)})
    tracker.event("started")
    tracker.close()
    JsonlTracker(path, append=True, drop=lambda line: line.get("step", 0) > 2).close()
    assert without_time(path) == [
        *({"step": s, "loss": float(s)} for s in range(3)),
        {"event": "started"},
    ]
    JsonlTracker(path, append=False).close()
    assert read_log(path) == []


@pytest.mark.parametrize("line", [b"not json", b"[1, 2]", b"\xff\xfe", b""])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "log.jsonl"
    path.write_bytes(b'{"step": 0}\n' + line + b'\n{"step": 2}\n')
    with pytest.raises(FileFormatError, match=r"line 2 of .*log\.jsonl"):
        read_log(path)


def logged(path, *values):
    """A log with an event of a network for each of the values."""
    tracker = JsonlTracker(path)
    for number, percent in enumerate(values):
        tracker.event("network", of="ab", number=number, percent=percent, finite=True)
    tracker.close()
    return path.read_text()


def test_an_altered_line_is_named_and_dropped_when_the_log_goes_on(tmp_path, caplog):
    path = tmp_path / "log.jsonl"
    text = logged(path, 10.3, 12.5)
    path.write_text(text.replace('"percent": 10.3', '"percent": 90.3'))
    said = rf"line 1 of {re.escape(str(path))} was altered \(its digest differs\)"
    with pytest.raises(FileFormatError, match=said):
        read_log(path)
    assert logged(path, 10.3, 12.5) == path.read_text()
    assert [(line["number"], line["percent"]) for line in read_log(path)] == [(1, 12.5), (0, 10.3)]
    assert [re.search(said, record.message) is not None for record in caplog.records] == [True]
    assert caplog.records[0].message.endswith("restore or delete that line; dropped")


def test_lines_of_an_earlier_version_are_read(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"time": 1.5, "event": "network", "of": "ab", "number": 0}\n')
    assert read_log(path) == [{"time": 1.5, "event": "network", "of": "ab", "number": 0}]


def test_what_is_resumed_logs_an_event_once(tmp_path):
    path = tmp_path / "log.jsonl"
    epoch = {"expert": 1, "epoch": 2, "train_loss": 0.5}
    cell = {"variant": "a", "seed": 0, "at": {"ipc": 1}, "mean": 61.0}
    for seconds in (1.5, 2.5):
        progress = LogProgress(tmp_path, ("epoch", "cell", "exported"))
        progress.event("epoch", **epoch, seconds=seconds)
        progress.event("epoch", **epoch | {"epoch": 3})
        progress.event("cell", **cell)
        progress.event("exported", to="npz")
        progress.close()
    names = [line["event"] for line in read_log(path)]
    assert names == ["epoch", "epoch", "cell", "exported", "exported"]
    # A cell that failed and then succeeded is two lines.
    progress = LogProgress(tmp_path, ("cell",))
    progress.event("cell", variant="b", seed=0, at={}, error="no memory")
    progress.event("cell", variant="b", seed=0, at={}, mean=50.0)
    progress.close()
    assert [line.get("mean") for line in read_log(path)[-2:]] == [None, 50.0]


def test_a_log_that_begins_anew_has_only_its_own_lines(tmp_path):
    for seed in (0, 1):
        progress = LogProgress(tmp_path, ("epoch",), append=False)
        progress.event("epoch", expert=0, epoch=1, train_loss=float(seed))
        progress.close()
    assert [line["train_loss"] for line in read_log(tmp_path / "log.jsonl")] == [1.0]


def test_a_missing_log_is_named(tmp_path):
    with pytest.raises(FileFormatError, match=r"absent\.jsonl: No such file"):
        read_log(tmp_path / "absent.jsonl")


class Recorder:
    """Stands in for whatever a tracking library hands out; remembers the calls."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))


@pytest.fixture
def libraries(monkeypatch):
    """Stub tensorboard and wandb modules."""
    writer, run = Recorder(), Recorder()
    run.summary = {}
    starts = []

    def start(value):
        return lambda *args, **kwargs: (starts.append((args, kwargs)), value)[1]

    tensorboard = types.ModuleType("torch.utils.tensorboard")
    tensorboard.SummaryWriter = start(writer)
    wandb = types.ModuleType("wandb")
    wandb.init = start(run)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", tensorboard)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    return types.SimpleNamespace(writer=writer, run=run, starts=starts)


def test_tensorboard_gets_numbers_and_events(tmp_path, libraries):
    tracker = TensorboardTracker(tmp_path)
    tracker.log(7, {"loss": 0.5, "note": "not a number"})
    tracker.event("best", val=61.0)
    tracker.close()
    assert libraries.starts == [((str(tmp_path / "tensorboard"),), {})]
    assert libraries.writer.calls == [
        ("add_scalar", ("loss", 0.5, 7), {}),
        ("add_text", ("best", '{"val": 61.0}', 7), {}),
        ("close", (), {}),
    ]


def test_wandb_gets_numbers_and_events(tmp_path, libraries, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    tracker = WandbTracker(tmp_path / "digits")
    tracker.log(7, {"loss": 0.5})
    tracker.event("best", val=61.0)
    tracker.close()
    ((_, started),) = libraries.starts
    assert started == {"project": "mine", "name": "digits", "dir": str(tmp_path / "digits")}
    assert libraries.run.calls == [("log", ({"loss": 0.5},), {"step": 7}), ("finish", (), {})]
    assert libraries.run.summary == {"best": {"val": 61.0}}


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_tracker_observes_iterations_and_validations(tmp_path, libraries, name):
    tracker = open_tracker(name, tmp_path)
    assert isinstance(tracker, Progress)
    assert isinstance(tracker.tracker, Tracker)
    tracker.update("experts", 3, 10, epoch=3)  # of another task
    tracker.update("distill", 0, 10)  # a resumed run, without an iteration
    tracker.update("distill", 1, 10, loss=2.0)
    tracker.event("validation", iteration=1, val_mean=50.0)
    tracker.event("epoch", expert=0)
    tracker.message("for a person")
    tracker.close()
    recorder = libraries.writer if name == "tensorboard" else libraries.run
    logged = [call for call in recorder.calls if call[0] in ("add_scalar", "log")]
    assert len(logged) == 2
    assert "2.0" in str(logged[0])
    assert "val_mean" in str(logged[1])
    assert "50.0" in str(logged[1])


@pytest.mark.parametrize(
    ("name", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")]
)
def test_a_missing_library_says_what_to_install(tmp_path, monkeypatch, name, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=rf"pip install 'trajmatch\[{name}\]'"):
        open_tracker(name, tmp_path)


def test_an_unknown_tracker_is_refused_with_a_suggestion(tmp_path):
    with pytest.raises(SettingError, match="did you mean 'wandb'"):
        open_tracker("wandbb", tmp_path)


RESULT = {
    "command": "evaluate",
    "settings": {"evaluate": {"networks": 5}},
    "seed": 3,
    "scores": [{"method": "mtt", "mean": 63.0, "sd": float("nan")}],
    "data": {"name": "digits", "fingerprint": "ab"},
    "seconds": 1.5,
}


def test_a_result_carries_its_origin_and_its_cost(tmp_path):
    written = write_result(tmp_path / "out", **RESULT, extra={"best_iteration": 50})
    assert written == read_result(tmp_path / "out")
    assert written["command"] == "evaluate"
    assert written["settings"] == {"evaluate": {"networks": 5}}
    assert written["scores"] == [{"method": "mtt", "mean": 63.0, "sd": None}]
    assert written["best_iteration"] == 50
    assert written["device"] == "cpu"
    assert written["threads"] == 1
    assert written["versions"]["torch"] == torch.__version__
    assert 20 < written["peak_memory_mb"] < 100_000  # torch alone takes more than 20


def test_an_extra_entry_must_not_hide_a_common_one(tmp_path):
    with pytest.raises(ValueError, match="seed"):
        write_result(tmp_path, **RESULT, extra={"seed": 4})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "does not exist"),
        ('{"format": 1', "not a readable JSON"),
        ("[]", "not a result"),
        ('{"a": 1}', "not a result"),
        ('{"format": 2}', r"newer trajmatch \(format 2, this one reads up to 1\); upgrade"),
    ],
)
def test_what_is_no_result_is_refused(tmp_path, text, reason):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(FileFormatError, match=reason):
        read_result(tmp_path)


def test_a_result_is_valid_json_for_any_reader(tmp_path):
    write_result(tmp_path, **RESULT)
    text = (tmp_path / "result.json").read_text()
    json.loads(text, parse_constant=pytest.fail)
