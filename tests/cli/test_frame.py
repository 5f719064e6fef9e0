"""The command line's frame: flags from configs, their base from a file, mistakes as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import tyro

import trajmatch
from trajmatch import cli
from trajmatch.cli.flags import Common, Flat, Positional, option_names, pick_device
from trajmatch.cli.frame import Command
from trajmatch.config import (
    DataConfig,
    EvaluateConfig,
    ExpertConfig,
    NetworkConfig,
)
from trajmatch.errors import SettingError, is_out_of_memory
from trajmatch.runtime.display import LINE_SECONDS, Display
from trajmatch.runtime.display import running as task
from trajmatch.units import rough_duration


@dataclasses.dataclass(frozen=True, kw_only=True)
class MakeFlags(Common):
    """Make something of the real images.

    It takes a while.
    """

    out: Path = Path("runs/made")
    """Folder to write to."""
    data: Flat[DataConfig] = DataConfig()
    network: Flat[NetworkConfig] = NetworkConfig()
    experts: Flat[ExpertConfig] = ExpertConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    force: bool = False
    """Overwrite what is there."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ReadFlags(Common):
    """Read what was made."""

    folder: Positional[Path]
    """What `make` wrote."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class CollidingFlags(Common):
    experts: Flat[ExpertConfig] = ExpertConfig()
    evaluate: Flat[EvaluateConfig] = EvaluateConfig()


class Recorder:
    """A command's `run` that keeps the flags it was given, or raises what it was told to."""

    def __init__(self) -> None:
        self.flags: Common | None = None
        self.error: BaseException | None = None

    def __call__(self, flags: Common) -> None:
        self.flags = flags
        if self.error is not None:
            raise self.error


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Recorder:
    recorder = Recorder()
    monkeypatch.chdir(tmp_path)
    commands = {
        "make": Command(MakeFlags, recorder, "make something", "trajmatch make --epochs 3"),
        "read": Command(ReadFlags, recorder, "read it", "trajmatch read runs/made"),
    }
    monkeypatch.setattr(cli, "COMMANDS", commands)
    return recorder


Mistake = Callable[[str], str]


@pytest.fixture
def mistake(ran: Recorder, capsys: pytest.CaptureFixture[str]) -> Mistake:
    """Run a line that is refused; give the one line on stderr."""

    def run(line: str) -> str:
        code = cli.main(line.split())
        captured = capsys.readouterr()
        assert code == 2
        assert captured.out == ""
        assert captured.err.endswith("\n")
        assert captured.err.count("\n") == 1
        assert ran.flags is None
        return captured.err.rstrip("\n")

    return run


# -- flags ---------------------------------------------------------------------------------------


def test_flags_reach_their_configs(ran: Recorder) -> None:
    line = (
        "make --epochs 3 --lr 0.5 --whitening zca --depth 2 --size none --evaluate.epochs 7 "
        "--evaluate.lr=0.25 --seed 4 --out there --force --val_fraction 0.2 --norm none"
    )
    assert cli.main(line.split()) == 0
    assert ran.flags == MakeFlags(
        out=Path("there"),
        seed=4,
        data=DataConfig(whitening="zca", val_fraction=0.2),
        network=NetworkConfig(depth=2, norm="none"),
        experts=ExpertConfig(epochs=3, lr=0.5),
        evaluate=EvaluateConfig(epochs=7, lr=0.25),
        force=True,
    )


def test_nothing_given_is_the_defaults(ran: Recorder) -> None:
    assert cli.main(["make"]) == 0
    assert ran.flags == MakeFlags()


def test_none_is_none_where_the_default_is_a_text_and_stays_where_it_is_not(ran: Recorder) -> None:
    assert (
        cli.main(["make", "--augment", "none", "--evaluate.augment", "None", "--pooling", "none"])
        == 0
    )
    assert isinstance(ran.flags, MakeFlags)
    assert ran.flags.experts.augment is None
    assert ran.flags.evaluate.augment is None
    assert ran.flags.network.pooling == "none"
    assert cli.main(["make", "--whitening", "none", "--size", "None"]) == 0
    assert isinstance(ran.flags, MakeFlags)
    assert (ran.flags.data.whitening, ran.flags.data.size) == (None, None)


def test_a_file_gives_the_base_and_flags_win(ran: Recorder, tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'seed = 9\n[data]\nwhitening = "zca"\n[experts]\nepochs = 8\nlr = 0.125\naugment = "none"\n'
        "[distill]\nipc = 10\n[evaluate]\nepochs = 30\n"
    )
    for spelled in (["--config", str(recipe)], [f"--config={recipe}"]):
        assert cli.main(["make", *spelled, "--epochs", "2"]) == 0
        assert ran.flags == MakeFlags(
            seed=9,
            config=recipe,
            data=DataConfig(whitening="zca"),
            experts=ExpertConfig(epochs=2, lr=0.125, augment=None),
            evaluate=EvaluateConfig(epochs=30),
        )
    assert cli.main(["make", "--config", str(recipe), "--seed", "1"]) == 0
    assert ran.flags is not None
    assert ran.flags.seed == 1


def test_option_names_are_those_of_the_parser(
    ran: Recorder, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Suggestions come from our own list; this holds it to what tyro offers."""
    monkeypatch.setenv("COLUMNS", "100")
    assert cli.main(["make", "--help"]) == 0
    rows = re.findall(r"^[│ ]+(--[\w.-]+)(?:, (--[\w.-]+))?", capsys.readouterr().out, re.MULTILINE)
    offered = {word for row in rows for word in row if word.strip("-")}
    assert offered == set(option_names(MakeFlags))


def test_configs_that_collide_are_a_bug_told_to_the_author() -> None:
    with pytest.raises(TypeError, match=r"--epochs.*leave Flat off"):
        option_names(CollidingFlags)
    both = option_names(MakeFlags)
    assert {"--epochs", "--evaluate.epochs", "--force", "--no-force"} <= set(both)


# -- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make --epoch 3", "trajmatch make: unknown option --epoch; did you mean --epochs?"),
        ("make --workers 3", "unknown option --workers; did you mean --evaluate.workers?"),
        ("make --qqq", "unknown option --qqq; see 'trajmatch make --help'"),
        ("make --epochs ten", "trajmatch make: --epochs needs a whole number, not 'ten'"),
        ("make --epochs 1.5", "--epochs needs a whole number, not '1.5'"),
        ("make --epochs=", "--epochs needs a whole number, not ''"),
        ("make --lr fast", "--lr needs a number, not 'fast'"),
        ("make --lr inf", "--lr needs a number, not 'inf'"),
        ("make --size wide", "--size needs a whole number or none, not 'wide'"),
        ("make --evaluate.lr x", "--evaluate.lr needs a number or none, not 'x'"),
        ("make --epochs", "trajmatch make: --epochs needs a value (INT)"),
        ("make --epochs --lr 1", "--epochs needs a value (INT)"),
        ("make --whitening pca", "make: unknown whitening 'pca'; did you mean 'zca'? (known: "),
        (
            "make --storage f16",
            "make: --storage is 'f16'; did you mean 'bf16'? (known: bf16, float32)",
        ),
        ("make --lr -1", "--lr is -1.0; it must be above 0"),
        ("make --evaluate.epochs 0", "--evaluate.epochs is 0; it must be at least 1"),
        ("make --epochs 0 --evaluate.epochs 1", "epochs is 0; it must be at least 1"),
        ("make there", "trajmatch make: 'there' is one value too many"),
        ("make --epochs 1 2", "'2' is one value too many; see 'trajmatch make --help'"),
        ("make --force 1", "'1' is one value too many"),
        ("make --device gpu", "--device is 'gpu'; "),
        ("make --out=", "--out is ''; give a path (. is the current folder)"),
        ("make --device cuda:99", "--device is 'cuda:99', but "),
        ("read", "is missing; for example: trajmatch read runs/made"),
        ("read --sed 1", "unknown option --sed; did you mean --seed?"),
        ("mke", "trajmatch: unknown command mke; did you mean make?"),
        ("qqqq", "trajmatch: unknown command qqqq; commands: make, read"),
        ("--epochs 3", "trajmatch: option --epochs needs a command before it (commands: make"),
    ],
)
def test_a_mistake_is_one_line(mistake: Mistake, line: str, said: str) -> None:
    assert said in mistake(line)


def test_what_is_wrong_in_a_file_is_one_line_that_names_it(
    mistake: Mistake, tmp_path: Path
) -> None:
    recipe = tmp_path / "recipe.toml"
    assert "cannot read settings from" in mistake(f"make --config {recipe}")
    recipe.write_text("[experts]\nepoch = 3\n")
    told = mistake(f"make --config {recipe}")
    assert str(recipe) in told
    assert "unknown setting 'experts.epoch'; did you mean 'epochs'?" in told
    recipe.write_text("seed = = 3\n")
    assert str(recipe) in mistake(f"make --config {recipe}")
    recipe.write_text(f"seed = {'[' * 100_000}\n")
    assert "nested too deeply" in mistake(f"make --config {recipe}")


def test_out_that_is_a_file_is_refused(mistake: Mistake, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    assert "'taken', which is a file; give a folder" in mistake("make --out taken")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("make --epoch 3", "trajmatch make: unknown option --epoch; did you mean --epochs?"),
        ("make --epochs ten", "trajmatch make: --epochs needs a whole number, not 'ten'"),
        ("make --lr -1", "trajmatch make: lr is -1.0; it must be above 0"),
        ("make --epochs", "--epochs"),
        ("make --storage f16", "make: --storage is 'f16'; did you mean 'bf16'?"),
        ("read", "PATH"),
    ],
)
def test_one_line_also_without_the_private_hook(
    mistake: Mistake, monkeypatch: pytest.MonkeyPatch, line: str, said: str
) -> None:
    """Another tyro may lack it; what that tyro prints is then condensed."""
    monkeypatch.delattr("tyro._errors.on_parse_error")
    assert said in mistake(line)


def test_the_hook_is_there_in_the_pinned_version() -> None:
    assert hasattr(tyro._errors, "on_parse_error")


def test_a_commands_own_error_is_one_line_and_2(
    ran: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    ran.error = SettingError("ipc is 0;\n  it must be at least 1")
    assert cli.main(["make"]) == 2
    assert capsys.readouterr().err == "trajmatch make: ipc is 0; it must be at least 1\n"


def test_a_name_that_is_not_utf_8_is_refused(mistake: Mistake) -> None:
    told = mistake("make --out there/\udcff")
    assert "the name there/\\udcff is not UTF-8, and files that record it are; rename it" in told


def test_a_path_that_cannot_be_written_is_one_line(
    ran: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    for error, said in (
        (
            PermissionError(13, "Permission denied", "/there/x"),
            "'/there/x': Permission denied; see",
        ),
        (FileNotFoundError(2, "No such file", "runs/made/x"), "runs/made can be written, or give"),
        (FileNotFoundError(2, "No such file", "photos/x.png"), "photos/x.png': No such file; see"),
        (FileNotFoundError(2, "No such file", "runs/made.1-0a1b.partial"), "runs/made': No such"),
        (IsADirectoryError(21, "Is a directory", "a", None, "runs/made"), "': Is a directory; see"),
        (
            PermissionError(13, "Permission denied", "/t/torchinductor_me/a"),
            "TORCHINDUCTOR_CACHE_DIR",
        ),
        (OSError(28, "No space left on device"), "make: No space left on device; see that stdout"),
        (OSError(5, "Input/output error"), "make: Input/output error; see that stdout"),
    ):
        ran.error = error
        assert cli.main(["make", "--data", "photos"]) == 2
        told = capsys.readouterr().err
        assert said in told
        assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "amount"),
    [
        (MemoryError(), "memory ran out; "),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate "
                "memory: you tried to allocate 4000000000000 bytes. Error code 12"
            ),
            "memory ran out (4000000000000 bytes more were needed); ",
        ),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ..."),
            "memory ran out (2.00 GiB more were needed); ",
        ),
    ],
)
def test_memory_that_ran_out_is_one_line(
    ran: Recorder, capsys: pytest.CaptureFixture[str], error: BaseException, amount: str
) -> None:
    ran.error = error
    assert cli.main(["make"]) == 2
    assert capsys.readouterr().err == (
        f"trajmatch make: {amount}lower --width, --ipc, a batch or --workers, or free memory\n"
    )


def test_the_allocator_s_own_error_is_recognized() -> None:
    with pytest.raises(RuntimeError) as error:
        torch.empty(10**15)
    assert is_out_of_memory(error.value)
    assert not is_out_of_memory(RuntimeError("a bug"))


@pytest.mark.parametrize(
    "bug",
    [
        RuntimeError("a bug"),
        ValueError("a bug"),
        BrokenPipeError(),
        FileNotFoundError(2, "No such file", "/elsewhere/template.j2"),
        ChildProcessError(10, "No child processes"),
    ],
)
def test_a_bug_stays_a_traceback(ran: Recorder, bug: BaseException) -> None:
    ran.error = bug
    with pytest.raises(type(bug)):
        cli.main(["make"])


def test_an_interruption_says_how_to_go_on(
    ran: Recorder, capsys: pytest.CaptureFixture[str]
) -> None:
    ran.error = KeyboardInterrupt()
    assert cli.main(["make"]) == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to continue\n"


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_device_there_is(device: str) -> None:
    assert pick_device(device).split(":")[0] in ("cpu", "cuda")


# -- what is told --------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"trajmatch {trajmatch.__version__}\n"


@pytest.mark.parametrize("line", ["", "--help", "-h", "help"])
def test_the_overview_names_every_command(
    ran: Recorder, capsys: pytest.CaptureFixture[str], line: str
) -> None:
    assert cli.main(line.split()) == 0
    told = capsys.readouterr().out
    assert "  make  make something\n  read  read it\n" in told
    assert "trajmatch make --epochs 3" in told


def test_help_of_a_command_teaches(ran: Recorder, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["make", "--help"]) == 0
    told = capsys.readouterr().out
    assert "Make something of the real images." in told
    assert "example: trajmatch make --epochs 3" in told
    for group in ("data options", "network options", "experts options", "evaluate options"):
        assert group in told
    assert "runs/made" in told
    assert "Overwrite what is there." in told
    assert ran.flags is None


def test_help_shows_the_files_values_as_defaults(
    ran: Recorder, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "recipe.toml").write_text("[experts]\nepochs = 1234\n")
    assert cli.main(["make", "--config", "recipe.toml", "--help"]) == 0
    assert "1234" in capsys.readouterr().out


def test_every_real_command_parses_its_defaults_and_has_help(
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, command in cli.COMMANDS.items():
        option_names(command.flags)
        assert command.example.startswith(f"trajmatch {name}"), name
        assert cli.main([name, "--help"]) == 0
        assert command.example in " ".join(capsys.readouterr().out.split()), name


# -- as a program --------------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_as_a_module_and_into_a_closed_pipe(unbuffered: str) -> None:
    """A process of its own: the reader is gone before it writes; it ends without a traceback."""
    source = str(Path(trajmatch.__file__).parents[1])
    reader, writer = os.pipe()
    os.close(reader)
    try:
        ended = subprocess.run(
            [sys.executable, "-m", "trajmatch", "--help"],
            env={**os.environ, "PYTHONPATH": source, "PYTHONUNBUFFERED": unbuffered},
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    finally:
        os.close(writer)
    assert ended.stderr == ""
    assert ended.returncode == 141


# -- progress ------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_are_rare_and_tell_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    with task("distill", 300, clock=clock) as bar:
        for iteration in range(300):
            clock.now += 1.25
            bar.advance(loss=0.7123, step=iteration)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "distill: 8/300, loss 0.712, step 7, 1.2 s/it, ETA 6 min"
    assert len(lines) == int(300 * 1.25 / LINE_SECONDS)


def test_what_ends_soon_writes_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with task("short", 3) as bar:
        bar.advance(3)
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""


def test_a_resumed_run_counts_speed_from_now_and_a_slow_start_is_forgotten() -> None:
    clock = Clock()
    with task("again", 400, done=200, clock=clock) as bar:
        clock.now += 1000.0
        bar.advance()
        assert bar.seconds_per_item == pytest.approx(1000.0)
        for _ in range(100):
            clock.now += 2.0
            bar.advance()
        assert bar.done == 301
        assert bar.seconds_per_item == pytest.approx(2.0)
        assert bar.note() == "2 s/it, ETA 3 min"


def test_the_time_before_the_work_began_is_not_its_own() -> None:
    clock = Clock()
    with task("later", 400, clock=clock) as bar:
        clock.now += 1800.0  # something else was done first
        bar.start(150)
        assert bar.note() == ""
        clock.now += 2.0
        bar.advance()
        assert bar.done == 151
        assert bar.note() == "2 s/it, ETA 8 min"


@pytest.fixture
def clock() -> Clock:
    """Of all that commands show."""
    return Clock()


def test_iterations_are_timed_from_the_first_one_on(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever came before it: half an hour of experts, or the iterations of an earlier call."""
    with contextlib.closing(Display(clock=clock)) as display:
        clock.now += 1800.0
        display.update("distill", 199, 400)  # done by the checkpoint
        for iteration in range(200, 210):
            clock.now += 2.0
            display.update("distill", iteration, 400, loss=0.7, step_size=0.01, grad_norm=3.0)
    captured = capsys.readouterr()
    assert captured.out == "continuing after iteration 199 of 400\n"
    assert captured.err.splitlines() == [
        "distill: 204/400, loss 0.7, step size 0.01, 2 s/it, ETA 7 min",
        "distill: 209/400, loss 0.7, step size 0.01, 2 s/it, ETA 6 min",
    ]


def test_a_step_size_that_is_not_learned_is_not_shown(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with contextlib.closing(Display(clock=clock)) as display:
        display.update("distill", 1, 400, loss=0.8, grad_norm=3.0)
        clock.now += 20.0
        display.update("distill", 2, 400, loss=0.7, grad_norm=3.0)
    assert capsys.readouterr().err == "distill: 2/400, loss 0.7, 20 s/it, ETA 2 h 13 min\n"


def test_a_task_that_starts_over_is_counted_anew(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """A study trains a second library when the first is finished."""
    with contextlib.closing(Display(clock=clock)) as display:
        for total in (4, 2):
            for epoch in range(1, total + 1):
                clock.now += 11.0
                display.update("experts", epoch, total, expert=0, epoch=epoch)
    lines = [line.split(",")[0] for line in capsys.readouterr().err.splitlines()]
    assert lines == ["experts: 2/4", "experts: 3/4", "experts: 4/4", "experts: 2/2"]


def test_what_was_done_before_counts_and_is_not_timed(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first update comes when some epochs are done, and the bar starts from there."""
    with Display(clock=clock) as display:
        for what in ("one", "other"):
            for done in range(40, 100, 4):
                clock.now += 2.0
                display.update("evaluation", done, 400, network=what)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "one, evaluation: 60/400, 0.5 s/it, ETA 3 min"
    assert lines[2] == "other, evaluation: 60/400, 0.5 s/it, ETA 3 min"


def test_work_from_python_shows_nothing_before_a_few_seconds(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display(patience=3.0, clock=clock) as display:
        display.update("distill", 1, 100, loss=1.0)
        display.message("early")
        clock.now += 2.9
        display.message("still early")
        clock.now += 0.2
        display.message("late")
        for done in range(2, 30):
            clock.now += 1.0
            display.update("distill", done, 100, loss=0.5)
    printed = capsys.readouterr()
    assert printed.out == "late\n"
    assert printed.err.splitlines()[0].startswith("distill: 12/100, loss 0.5")


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "0 s"), (89.0, "89 s"), (90.0, "2 min"), (300.0, "5 min"), (4320.0, "1 h 12 min"),
     (7200.0, "2 h"), (183600.0, "2 d 3 h"), (172800.0, "2 d")],
)  # fmt: skip
def test_durations(seconds: float, said: str) -> None:
    assert rough_duration(seconds) == said


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_terminal_gets_live_rows_also_nested(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with task("outer", 2) as outer:
        for _ in range(2):
            with task("inner", 5) as inner:
                inner.advance(5, loss=0.5)
            outer.advance()
    shown = terminal.getvalue()
    assert "outer" in shown
    assert "2/2" in shown
    with task("next", 1) as bar:  # the display was given back
        bar.advance()
    assert "next" in terminal.getvalue()
