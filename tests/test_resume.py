"""Real processes, killed without warning and started again: the same bits as if left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import tiny
from trajmatch import cli
from trajmatch.files import open_tensors
from trajmatch.synthetic import SyntheticSet
from trajmatch.track import read_log, read_result

ITERATIONS = 60
WORDS = (
    f"--device cpu --iterations {ITERATIONS} --syn-steps 3 --expert-epochs 1 --max-start-epoch 2 "
    "--eval-every 20 --checkpoint-every 7 --eval-networks 1 --ema 0.5 --soft-labels --ipc 2 "
    f"--batch-syn 15 {tiny.JUDGE_WORDS}"
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
    """The log without its clock."""
    clock = ("time", "seconds")
    return [{k: v for k, v in r.items() if k not in clock} for r in read_log(out / "log.jsonl")]


def same(out: Path, other: Path) -> None:
    """Every number of two runs, to the bit."""
    assert steps(out) == steps(other)
    for name in ("best", "last"):
        one, two = SyntheticSet.load(out / name), SyntheticSet.load(other / name)
        assert torch.equal(one.images, two.images)
        assert torch.equal(one.labels, two.labels)
        assert one.step_size == two.step_size
        assert one.info == two.info
    one, two = (
        open_tensors(place / "checkpoint.safetensors", kind="checkpoint", version=1)
        for place in (out, other)
    )
    for name in one.names:
        assert torch.equal(one.read(name), two.read(name)), name
    assert one.metadata["best"] == two.metadata["best"]
    found, wanted = read_result(out), read_result(other)
    for name in ("scores", "best_iteration", "last_iteration", "best_validation"):
        assert found[name] == wanted[name]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("resume") / "undisturbed"
    assert cli.main(words(out)) == 0
    lines = [line for line in steps(out) if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, ITERATIONS + 1))
    return out


def wait_for(out: Path, iteration: int, process: subprocess.Popen[bytes]) -> None:
    patience = time.monotonic() + 120
    while logged(out) < iteration:
        assert process.poll() is None, f"ended early with {process.returncode}"
        assert time.monotonic() < patience, "it did not get there"
        time.sleep(0.002)


def test_killed_and_run_again(tmp_path: Path, undisturbed: Path) -> None:
    """`kill -9` at a moment nobody chose, then the same command line again."""
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "trajmatch", *words(out)]
    moment = random.Random()
    iteration, delay = moment.randint(2, 35), moment.uniform(0, 0.03)
    process = subprocess.Popen(command, env=environment(), stdout=subprocess.DEVNULL)
    wait_for(out, iteration, process)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "result.json").exists()
    reached = logged(out)
    print(f"killed after iteration {reached} (asked for {iteration} and {delay:.4f} s more)")
    assert iteration <= reached < ITERATIONS
    again = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert (again.returncode, again.stderr) == (0, "")
    same(out, undisturbed)


# Forks a fresh copy of itself for every attempt: what it has imported need not be imported again.
KILLER = """
import json, os, random, signal, sys, time
import torch
torch.set_num_threads(1)
from pathlib import Path
from trajmatch import cli, pipeline
from trajmatch.cli import shown
from trajmatch.track import read_log

words, log, kills = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
sys.stdout = sys.stderr
chance = random.Random()
done = []
for kill in range(kills + 1):
    began = len(read_log(log)) if log.exists() else 0
    child = os.fork()
    if not child:
        os._exit(cli.main(words))
    if kill == kills:
        break
    size = log.stat().st_size if log.exists() else -1
    while (log.stat().st_size if log.exists() else -1) == size:
        time.sleep(0.001)  # it has begun to work
    time.sleep(chance.uniform(0, 0.12))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    done.append(max(line.get("step", 0) for line in read_log(log)))
_, status = os.waitpid(child, 0)
print(json.dumps({"killed after": done, "code": os.waitstatus_to_exitcode(status)}), file=sys.__stdout__)
"""


def test_killed_again_and_again(tmp_path: Path, undisturbed: Path) -> None:
    out = tmp_path / "killed"
    arguments = [json.dumps(words(out)), str(out / "log.jsonl"), "6"]
    ended = subprocess.run(
        [sys.executable, "-c", KILLER, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout)
    print(told)
    assert told["code"] == 0
    assert len(told["killed after"]) == 6
    assert min(told["killed after"]) < ITERATIONS  # at least one was in the middle of the work
    same(out, undisturbed)


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
    """20 iterations are evaluated at 20 in any case, so nothing tells them from 60."""
    short = words(tmp_path / "run")
    short[short.index("--iterations") + 1] = "20"
    assert cli.main(short) == 0
    assert logged(tmp_path / "run") == 20
    assert cli.main(words(tmp_path / "run")) == 0
    same(tmp_path / "run", undisturbed)
