"""The program as a process: signals at any moment, streams in any state, paths that fail it."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests import tiny
from tests.foreground import as_in_the_foreground

import trajmatch
from trajmatch.experts import ExpertLibrary
from trajmatch.methods.checkpoint import checkpoint_iteration
from trajmatch.storage import read_log
from trajmatch.synthetic import SyntheticSet

SOURCE = str(Path(trajmatch.__file__).parents[1])
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


def start(line: str, folder: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "trajmatch", *line.split()],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=as_in_the_foreground if os.name == "posix" else None,
    )


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def catches(process: subprocess.Popen[str]) -> bool:
    """Whether the process has a handler for SIGTERM, which Python itself has not."""
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii")
    (mask,) = re.findall(r"^SigCgt:\s*(\w+)", status, re.MULTILINE)
    return bool(int(mask, 16) >> (signal.SIGTERM - 1) & 1)


# -- signals -------------------------------------------------------------------------------------


@LINUX
def test_a_signal_while_modules_are_imported_is_one_line(tmp_path: Path) -> None:
    """At several moments of the first second, in which numpy and torch are imported."""
    cases = [("SIGINT", 0.0), ("SIGINT", 0.1), ("SIGINT", 0.3), ("SIGTERM", 0.2), ("SIGHUP", 0.1)]
    for name, delay in cases:
        process = start("demo --out run", tmp_path)
        wait_until(lambda process=process: catches(process), process)
        time.sleep(delay)
        process.send_signal(getattr(signal, name))
        _, said = process.communicate(timeout=60)
        word = "interrupted" if name == "SIGINT" else f"interrupted by {name}"
        assert said.splitlines()[-1] == f"{word}; run the same command again to continue"
        assert "Traceback" not in said
        assert process.returncode == 128 + getattr(signal, name)


@LINUX
def test_signals_that_are_ignored_stay_so(tmp_path: Path) -> None:
    """As under nohup."""
    code = (
        "import signal; signal.signal(signal.SIGHUP, signal.SIG_IGN)\n"
        "from trajmatch.runtime.interruption import catch_signals; catch_signals()\n"
        "print([signal.getsignal(n) is signal.SIG_IGN for n in (signal.SIGHUP, signal.SIGTERM)])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert found.stdout == "[True, False]\n"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signaled_distillation_saves_and_ends_with_the_same_bits(
    tmp_path: Path, name: str
) -> None:
    line = (
        f"distill --data digits --experts {tiny.library().path} {tiny.DISTILL_WORDS} "
        f"--checkpoint-every 99 --eval-every 99 --iterations 40 {tiny.SCORE_WORDS}"
    )
    process = start(f"{line} --out run", tmp_path)
    log = tmp_path / "run" / "log.jsonl"
    wait_until(lambda: log.is_file() and '"loss"' in log.read_text(encoding="utf-8"), process)
    process.send_signal(getattr(signal, name))
    _, said = process.communicate(timeout=60)
    assert process.returncode == 128 + getattr(signal, name)
    first, last = said.splitlines()
    assert first.endswith("; stopping when this iteration is done; again: at once")
    assert last.endswith("; run the same command again to continue")
    done = checkpoint_iteration(tmp_path / "run")
    assert 0 < done < 40
    assert sum("loss" in line for line in read_log(log)) == done
    processes = [start(f"{line} --out {out}", tmp_path) for out in ("run", "undisturbed")]
    for process in processes:
        process.communicate(timeout=120)
        assert process.returncode == 0
    resumed, whole = (SyntheticSet.load(tmp_path / o / "last") for o in ("run", "undisturbed"))
    assert torch.equal(resumed.images, whole.images)


@pytest.mark.slow
@LINUX
@pytest.mark.parametrize("group", [False, True])
def test_signaled_experts_end_with_their_workers_and_go_on(tmp_path: Path, group: bool) -> None:
    """The signal goes to the main process, or as a terminal and batch systems send it to all."""
    line = (
        f"experts --data digits {tiny.NETWORK_WORDS} --experts 2 --epochs 40 --batch 128 --lr 0.05 "
        "--workers 2 --out library"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "trajmatch", *line.split()],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": SOURCE}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    log = tmp_path / "library" / "log.jsonl"
    wait_until(lambda: log.is_file() and log.stat().st_size > 0, process)
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143
    assert said == "interrupted by SIGTERM; run the same command again to continue\n"
    with contextlib.suppress(ProcessLookupError):
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.1)
        pytest.fail("a worker is still there")
    assert not list((tmp_path / "library").glob("*.partial"))
    process = start(line, tmp_path)
    process.communicate(timeout=120)
    assert process.returncode == 0
    assert ExpertLibrary.open(tmp_path / "library").experts == [0, 1]


# -- streams -------------------------------------------------------------------------------------


FULL = (
    "trajmatch: No space left on device; see that stdout and the disk of --out have room and can "
    "be written to\n"
)
SHOW = """
from trajmatch.runtime.streams import prepare_streams
import sys
prepare_streams()
print("accuracy \\u00b1 of \\u732b \\udcff")
print("a line \\u732b", file=sys.stderr)
sys.stdout.flush()
"""


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, b"accuracy \xb1 of \\u732b \\udcff\n"),
        ({"PYTHONIOENCODING": "ascii"}, b"accuracy \\xb1 of \\u732b \\udcff\n"),
        ({"PYTHONIOENCODING": "utf-8"}, "accuracy \u00b1 of \u732b \\udcff\n".encode()),
    ],
)
def test_a_character_that_stdout_lacks_is_an_escape(
    environment: dict[str, str], said: bytes
) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", SHOW], capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": SOURCE, **environment},
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == said


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's redirections")
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [
        (">&-", 0, ""),
        (">&- 2>&-", 0, ""),
        ("<&- >&-", 0, ""),
        ("> /dev/full", 2, FULL),
    ],
)
def test_a_stdout_that_takes_nothing_is_no_traceback(
    redirection: str, code: int, said: str
) -> None:
    if "full" in redirection and not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    ended = subprocess.run(
        ["sh", "-c", f"{sys.executable} -m trajmatch --version {redirection}"],
        env={**os.environ, "PYTHONPATH": SOURCE}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.stderr == said
    assert ended.returncode == code
