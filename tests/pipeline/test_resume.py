"""Real processes, killed without warning and started again: the same bits as if left alone."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import cli
from trajmatch.storage import read_log, read_result
from trajmatch.storage.files import open_tensors
from trajmatch.synthetic import SyntheticSet

ITERATIONS = 24
WORDS = (
    f"--device cpu --iterations {ITERATIONS} --syn-steps 2 --expert-epochs 1 --max-start-epoch 2 "
    "--optimizer sgd --lr-img 10 --lr-lr 1e-6 --step-size 0.01 --eval-every 8 "
    "--checkpoint-every 5 --eval-networks 1 --ema 0.5 "
    "--soft-labels --batch-syn 7 "
    f"{tiny.SCORE_WORDS}"
)


def words(out: Path, seed: int = 0) -> list[str]:
    experts = str(tiny.library().path)
    return ["distill", "--experts", experts, "--out", str(out), "--seed", str(seed), *WORDS.split()]


def environment() -> dict[str, str]:
    """One thread, as here: the number of threads may change the order of a sum."""
    threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return {**os.environ, **threads, "PYTHONWARNINGS": "error"}


def logged(out: Path) -> int:
    """The last iteration that the log tells of."""
    path = out / "log.jsonl"
    if not path.exists():
        return 0
    return max((line.get("step", 0) for line in read_log(path)), default=0)


def steps(out: Path) -> list[dict]:
    """What the log tells of iterations, without its clock."""
    clock, lines = ("time", "seconds"), read_log(out / "log.jsonl")
    return [{k: v for k, v in r.items() if k not in clock} for r in lines if "step" in r]


def networks(out: Path) -> list[tuple[str, int, float]]:
    """Every fresh network that the last judging trained; in no order, as several may at once."""
    lines = [r for r in read_log(out / "log.jsonl") if r.get("event") == "network"]
    return sorted((line["of"], line["number"], line["percent"]) for line in lines)


def same(out: Path, other: Path) -> None:
    """Every number of two runs, to the bit."""
    assert steps(out) == steps(other)
    assert set(networks(out)) >= set(networks(other))  # those of a shorter run before it as well
    assert len(networks(out)) == len(set(networks(out)))  # none was trained again
    for name in ("best", "last"):
        one, two = SyntheticSet.load(out / name), SyntheticSet.load(other / name)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert one.step_size == two.step_size
        one.info["settings"]["iterations"] = ITERATIONS  # as asked for when that set was made
        assert one.info == two.info
    one, two = (
        open_tensors(place / "checkpoint.safetensors", kind="checkpoint", version=1)
        for place in (out, other)
    )
    for name in one.names:
        assert torch.equal(one.read(name), two.read(name)), name
    assert one.metadata["best"] == two.metadata["best"]
    found, wanted = read_result(out), read_result(other)
    for name in ("scores", "best_iteration", "last_iteration", "best_validation", "resolved"):
        assert found[name] == wanted[name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "undisturbed"
    assert cli.main(words(out)) == 0
    lines = [line for line in steps(out) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, ITERATIONS + 1))
    return out


@pytest.fixture(autouse=True)
def _no_power_cuts(monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process; those that are killed do wait for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def wait_for(out: Path, iteration: int, process: subprocess.Popen[bytes]) -> None:
    patience = time.monotonic() + 120
    while logged(out) < iteration:
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < patience, "it did not get there"
        time.sleep(0.002)


def killed(out: Path, command: list[str]) -> int:
    """Start the command and `kill -9` it at a moment nobody chose; the iteration it had reached."""
    chance = random.Random()
    iteration, delay = chance.randint(1, 14), chance.uniform(0, 0.03)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(out, iteration, process)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    reached = logged(out)
    print(f"killed after iteration {reached}: {delay:.4f} s after the log told of {iteration}")
    assert reached >= iteration
    return reached


def test_killed_and_run_again(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "trajmatch", *words(out)]
    while killed(out, command) == ITERATIONS:  # this process was not given its turn in time
        shutil.rmtree(out)
    assert not (out / "result.json").exists()
    assert cli.main(words(out)) == 0  # in this process, which saves the seconds of a start
    same(out, undisturbed)


# Every attempt is a fork of one process, which has imported everything already.
KILLER = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
from trajmatch import cli, pipeline
from trajmatch.cli import shown
from trajmatch.data import load_data
from trajmatch.storage import read_log

torch.set_num_threads(1)
load_data("digits")
words, log, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
answer, sys.stdout = sys.stdout, sys.stderr
chance, reached = random.Random(), []

def size():
    return log.stat().st_size if log.exists() else -1

for kill in range(kills + 1):
    before = size()
    child = os.fork()
    if not child:
        os._exit(cli.main(words))
    if kill < kills:
        look = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while size() == before and not os.waitid(os.P_PID, child, look):
            time.sleep(0.001)
        time.sleep(chance.uniform(0, 0.15))  # it has begun to work
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    reached.append(max([line.get("step", 0) for line in read_log(log)], default=0))
code = os.waitstatus_to_exitcode(status)
print(json.dumps({"reached": reached, "code": code}), file=answer)
"""


@pytest.mark.slow
def test_killed_again_and_again(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "killed"
    ended = subprocess.run(
        [sys.executable, "-c", KILLER, json.dumps(words(out)), str(out / "log.jsonl"), "6"],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    print(f"killed after iterations {told['reached'][:-1]}")
    assert told["code"] == 0
    assert told["reached"][0] < told["reached"][-1] == ITERATIONS
    same(out, undisturbed)


@pytest.mark.slow
def test_the_same_seed_is_the_same_run_and_another_is_not(
    tmp_path: Path, undisturbed: Path
) -> None:
    assert cli.main(words(tmp_path / "same")) == 0
    same(tmp_path / "same", undisturbed)
    assert cli.main(words(tmp_path / "other", seed=1)) == 0
    one, other = read_result(undisturbed), read_result(tmp_path / "other")
    assert [score["values"] for score in one["scores"][:2]] != [
        score["values"] for score in other["scores"][:2]
    ]
    losses = [[line.get("loss") for line in steps(o)] for o in (undisturbed, tmp_path / "other")]
    assert losses[0] != losses[1]


def test_a_longer_run_goes_on_where_the_shorter_ended(tmp_path: Path, undisturbed: Path) -> None:
    """8 iterations are evaluated at 8 in any case, so nothing tells them from 24."""
    short = words(tmp_path / "run")
    short[short.index("--iterations") + 1] = "8"
    assert cli.main(short) == 0
    assert logged(tmp_path / "run") == 8
    assert cli.main(words(tmp_path / "run")) == 0
    same(tmp_path / "run", undisturbed)
