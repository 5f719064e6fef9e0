"""Tasks in processes: order, errors, and no process that outlives its purpose."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tests.foreground import as_in_the_foreground

from trajmatch.errors import MissingExtraError, SettingError, TrajmatchError
from trajmatch.runtime import executor as local
from trajmatch.runtime.executor import (
    Executor,
    Processes,
    Serial,
    emit,
    executor_for,
    run_tasks,
)

SCRIPT = """
import os, time
from trajmatch.runtime.executor import emit, run_tasks

def sleep(task):
    emit(os.getpid())
    time.sleep(120)

def show(event):
    print(event, flush=True)

if __name__ == "__main__":
    try:
        run_tasks(sleep, [0, 1], workers=2, on_event=show)
    except KeyboardInterrupt:
        print("interrupted", flush=True)
"""


class Unpicklable(Exception):
    def __init__(self, one, two):
        super().__init__(one)


def work(task):
    emit((task, os.getpid(), torch.get_num_threads()))
    if isinstance(task, Path):  # created once the results of all other tasks have arrived
        while not task.exists():
            time.sleep(0.01)
        raise MissingExtraError("this", "ray")
    if task == "unpicklable":
        raise Unpicklable(1, 2)
    if task == "value":
        raise ValueError("three")
    if task == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if task == "nested":
        return run_tasks(work, [torch.ones(2), torch.zeros(2)], workers=2)
    return task * 2


def _check(returned, events):
    assert torch.equal(returned[0], torch.tensor([0, 2, 4]))
    assert [r.tolist() for r in returned[1]] == [[2, 2], [0, 0]]
    assert [returned[i] for i in (2, 3, 4)] == [14, "aa", 8]
    heard = [event for event in events if isinstance(event[0], (str, int))]
    assert {"nested", 7, "a", 4} <= {event[0] for event in heard}
    assert {event[2] for event in heard} == {2}  # threads
    assert os.getpid() not in {event[1] for event in heard}
    assert multiprocessing.active_children() == []


TASKS = [torch.arange(3), "nested", 7, "a", 4]


def test_results_and_events_arrive_and_an_error_is_raised_as_it_was(tmp_path):
    results, events = {}, []

    def on_result(number, result):
        results[number] = result
        if len(results) == len(TASKS):
            (tmp_path / "now").touch()

    with pytest.raises(MissingExtraError, match=r"pip install 'trajmatch\[ray\]'"):
        run_tasks(
            work,
            [*TASKS, tmp_path / "now"],
            workers=2,
            threads=2,
            on_result=on_result,
            on_event=events.append,
        )
    _check(results, events)


@pytest.mark.slow
def test_results_come_in_task_order():
    results, events = {}, []
    keywords = {"on_result": results.__setitem__, "on_event": events.append}
    returned = run_tasks(work, TASKS, workers=2, threads=2, **keywords)
    _check(returned, events)
    assert sorted(results) == [0, 1, 2, 3, 4]
    assert all(results[i] is returned[i] for i in range(5))


def test_one_worker_is_this_process():
    results, events = {}, []
    keywords = {"on_result": results.__setitem__, "on_event": events.append}
    assert run_tasks(work, [7, "a"], workers=1, threads=2, **keywords) == [14, "aa"]
    assert results == {0: 14, 1: "aa"}
    assert events == [(7, os.getpid(), 2), ("a", os.getpid(), 2)]
    assert torch.get_num_threads() == 1  # as it was
    with pytest.raises(ValueError, match="three"):
        run_tasks(work, ["value"], workers=1)


def test_processes_are_used_where_several_have_something_to_do():
    assert executor_for(3, tasks=2, threads=4) == Processes(workers=2, threads=4)
    for workers, tasks in [(1, 5), (5, 1), (5, 0)]:
        assert executor_for(workers, tasks, threads=4) == Serial(threads=4)
    assert isinstance(Serial(), Executor)
    assert isinstance(Processes(2), Executor)
    with pytest.raises(SettingError, match="workers is 0; it must be at least 1"):
        Processes(0)


def emit_and_save(path):
    emit((os.getpid(), torch.get_num_threads()))
    path.touch()
    return path.name


@pytest.mark.slow
def test_one_process_is_still_another_process_and_waits_for_the_listener(tmp_path):
    events = []

    def listen(event):
        time.sleep(0.3)  # a worker that does not wait saves now
        events.append((*event, len(list(tmp_path.iterdir()))))

    paths = [tmp_path / "one", tmp_path / "two"]
    returned = Processes(1, threads=2).map_tasks(emit_and_save, paths, on_event=listen)
    assert returned == ["one", "two"]
    assert [(threads, saved) for _, threads, saved in events] == [(2, 0), (2, 1)]
    assert len({pid for pid, _, _ in events} - {os.getpid()}) == 1
    assert multiprocessing.active_children() == []


def test_emit_without_a_listener_is_silent():
    emit("nobody hears")
    assert run_tasks(work, [2], workers=8) == [4]  # one task starts no process
    assert run_tasks(work, [], workers=2) == []


@pytest.mark.slow
def test_other_errors_carry_the_workers_traceback():
    with pytest.raises((ValueError, RuntimeError)) as error:
        run_tasks(work, ["value", "unpicklable"], workers=2)
    assert str(error.value) in ("three", "Unpicklable: 1")
    assert "in work" in error.value.__notes__[0]
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_a_killed_worker_is_reported():
    with pytest.raises(TrajmatchError, match="killed"):
        run_tasks(work, ["die", 1], workers=2)
    assert multiprocessing.active_children() == []


def test_what_carries_an_error_home():
    error = pickle.loads(pickle.dumps(local._portable(Unpicklable(1, 2))))
    assert repr(error) == "RuntimeError('Unpicklable: 1')"
    assert "Unpicklable" in error.__notes__[0]
    error = pickle.loads(pickle.dumps(local._portable(KeyError("k"))))
    assert repr(error) == "KeyError('k')"


def test_a_function_a_worker_cannot_have_is_an_error():
    with pytest.raises(AttributeError, match="lambda"):
        run_tasks(lambda task: task, [1, 2], workers=2)
    assert multiprocessing.active_children() == []


def _alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(
    ("number", "output"),
    [(signal.SIGKILL, ""), pytest.param(signal.SIGINT, "interrupted\n", marks=pytest.mark.slow)],
)
def test_workers_die_with_their_parent(tmp_path, number, output):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    parent = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
        preexec_fn=as_in_the_foreground,
    )
    workers = [int(parent.stdout.readline()) for _ in range(2)]
    assert all(_alive(pid) for pid in workers)
    if number == signal.SIGINT:
        os.killpg(parent.pid, number)  # Ctrl-C: the whole group gets it
    else:
        parent.send_signal(number)
    assert parent.communicate(timeout=20)[0] == output
    patience = time.monotonic() + 10
    while any(_alive(pid) for pid in workers) and time.monotonic() < patience:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in workers)
