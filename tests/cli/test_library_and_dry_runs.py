"""`run --experts` uses a library that is there; every long command has a dry run."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

import tiny
from trajmatch import cli, pipeline
from trajmatch.errors import MismatchError, SettingError
from trajmatch.pipeline.cost import estimate as cost
from trajmatch.pipeline.cost.iteration import Iteration
from trajmatch.pipeline.cost.measure import Speeds
from trajmatch.pipeline.recipe import load_recipe
from trajmatch.storage import read_result

RUN = f"run digits-ipc1 --device cpu {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS}"
DISTILL = f"distill --device cpu {tiny.DISTILL_WORDS} {tiny.SCORE_WORDS}"
EXPERTS = f"experts --device cpu {tiny.NETWORK_WORDS} {tiny.EXPERT_WORDS}"


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Each test in a folder of its own, with known speeds, and without waiting for the disk."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.delenv("TRAJMATCH_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    speeds = Speeds(image=1e-3, evaluation=0.01, iteration=Iteration(0.5, 10**6, False, "timed"))
    known = functools.partial(cost.estimate, measure=lambda *given: speeds)
    monkeypatch.setattr(cost, "estimate", known)


@pytest.fixture
def library() -> Path:
    return tiny.library().path


Line = Callable[..., str]


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Line:
    """Carry out a line that ends with `code`; give what it printed."""

    def carry_out(line: str, code: int = 0) -> str:
        capsys.readouterr()
        assert cli.main(line.split()) == code, capsys.readouterr().err
        captured = capsys.readouterr()
        assert code == 0 or captured.err.count("\n") == 1
        # Without the counts of each class, which test_data_lines.py tests.
        lines = captured.out.splitlines(keepends=True)
        out = "".join(line for line in lines if not line.endswith("validation/test)\n"))
        return captured.err if code else out

    return carry_out


def contents(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


# -- a library that is there ---------------------------------------------------------------------


@pytest.mark.slow
def test_a_run_takes_a_librarys_experts_network_and_whitening(library: Path, said: Line) -> None:
    pytest.importorskip("jinja2")
    before = contents(library)
    shown = said(f"{RUN} --experts {library} --out out")
    assert "what is left (2 experts and 0 iterations are there)" in shown
    result = read_result("out")
    assert result["network"] == "ConvNet-D2 width 4 instance"
    assert result["library"]["path"] == str(library)
    settings = result["settings"]
    assert settings["data"]["whitening"] == "normalize"
    assert (settings["network"]["width"], settings["experts"]["epochs"]) == (4, 3)
    assert settings["experts"]["experts"] == result["library"]["experts"] == 2
    assert not Path("out/experts").exists()
    assert contents(library) == before
    alone = pipeline.distill(
        tiny.digits(), tiny.METHOD, library, "alone", config=tiny.DISTILL, evaluation=tiny.EVALUATE
    )
    assert alone.best_validation == result["best_validation"]


def test_a_run_takes_the_first_experts_of_a_library(library: Path, said: Line) -> None:
    shown = said(f"{RUN} --experts {library} --experts.experts 1 --out out --dry-run")
    assert "(1 experts and 0 iterations are there)" in shown
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--experts nowhere", ["no expert library in nowhere"]),
        ("--experts LIBRARY --width 8", ["width=4", "width=8", "leave the network out"]),
        ("--experts LIBRARY --whitening zca", ["use --whitening normalize"]),
        ("--experts LIBRARY --val-fraction 0.2", ["1295 training", "1151", "--val-fraction"]),
        (
            "--experts LIBRARY --experts.experts 3",
            ["3 experts are to be used", "holds 2 finished ones; use --experts.experts 2"],
        ),
        (
            "--experts LIBRARY --experts.lr 0.1",
            ["--experts.lr is 0.1", "already, with 0.05; leave --experts.lr out"],
        ),
        ("--experts LIBRARY --max-start-epoch 6", ["these experts have 3"]),
    ],
)
def test_a_library_that_does_not_fit_is_refused_first(
    words: str, expected: list[str], library: Path, said: Line
) -> None:
    line = f"{RUN} {words} --out out".replace("LIBRARY", str(library))
    for dry in ("", " --dry-run"):
        shown = said(line + dry, 2)
        assert [word for word in expected if word not in shown] == [], shown
    assert list(Path().iterdir()) == []


def test_in_python_a_recipe_takes_a_library(library: Path) -> None:
    recipe = load_recipe("digits-ipc1")
    with pytest.raises(MismatchError, match="leave the network out to take the experts'"):
        pipeline.run(recipe, "out", experts=library, data=tiny.digits())
    taken = recipe.with_library(tiny.library()).with_method(max_start_epoch=6)
    assert taken.network.width == 4
    assert taken.experts == tiny.EXPERTS
    with pytest.raises(SettingError, match="these experts have 3"):
        pipeline.run(taken, "out", experts=library, data=tiny.digits())
    assert not Path("out").exists()


# -- dry runs ------------------------------------------------------------------------------------


def test_experts_say_what_they_cost(library: Path, said: Line) -> None:
    shown = said(f"{EXPERTS} --out out --dry-run").splitlines()
    assert shown[1].startswith("estimated cost on this machine (cpu)")
    assert [line.split()[0] for line in shown[2:]] == ["experts", "in"]
    assert "2 experts x 3 epochs" in shown[2]
    assert "of disk for experts" in shown[3]
    assert list(Path().iterdir()) == []
    before = contents(library)
    shown = said(f"{EXPERTS} --experts 3 --out {library} --dry-run").splitlines()
    assert "(2 experts and 0 iterations are there)" in shown[1]
    assert "1 experts x 3 epochs" in shown[2]
    shown = said(f"{EXPERTS} --out {library} --dry-run").splitlines()
    assert shown[1] == "nothing is left to do: 2 experts are there"
    assert contents(library) == before


def test_experts_say_what_they_cost_on_data_that_are_not_there(said: Line) -> None:
    shown = said("experts --data cifar10 --device cpu --dry-run").splitlines()
    assert shown[0].startswith("data not found: cifar10 needs its files")
    assert "10 experts x 50 epochs" in shown[2]


def test_a_distillation_says_what_it_costs(library: Path, said: Line) -> None:
    line = f"{DISTILL} --experts {library} --out out"
    shown = said(f"{line} --dry-run").splitlines()
    assert [line.split()[0] for line in shown[2:]] == ["distillation", "evaluation", "in"]
    assert "4 iterations, 0.5 s each" in shown[2]
    assert "12 networks" in shown[3]  # 3 validations and 3 sets at the end, of 2 networks each
    assert "disk" not in shown[4]
    assert "8 networks" in said(f"{line} --dry-run --no-test")  # ... and 1 set
    assert list(Path().iterdir()) == []
    said(f"{line} --no-test")
    before = contents(Path("out"))
    shown = said(f"{line} --iterations 6 --dry-run").splitlines()
    assert "(2 experts and 4 iterations are there)" in shown[1]
    assert "2 iterations" in shown[2]
    assert contents(Path("out")) == before


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (f"{EXPERTS} --norm batch", "running statistics"),
        (f"{EXPERTS} --augment colr", "did you mean 'color'?"),
        (f"{EXPERTS} --width 8 --out LIBRARY", "use --width 4 or another --out"),
        (f"{EXPERTS} --lr 0.1 --out LIBRARY", "use --lr 0.05 or another --out"),
        (f"{EXPERTS} --seed 3 --out LIBRARY", "use --seed 0 or another --out"),
        (f"{DISTILL} --experts LIBRARY --max-start-epoch 6", "these experts have 3"),
        (f"{DISTILL} --experts LIBRARY --ipc 126", "from 1 to 125"),
        (f"{DISTILL} --experts LIBRARY --width 8", "leave the network out"),
        ("distill --method dm --init-labels experts", "--init-labels is a setting of mtt"),
        ("distill --method dc --ipc 3", "dc has published loops for"),
    ],
)
def test_a_dry_run_refuses_what_the_command_would(
    line: str, expected: str, library: Path, said: Line
) -> None:
    assert expected in said(f"{line} --dry-run".replace("LIBRARY", str(library)), 2)
    assert list(Path().iterdir()) == []


def test_experts_are_timed_alone() -> None:
    """The real measuring, of a network that takes no time."""
    found = cost.estimate.func(  # type: ignore[attr-defined]
        load_recipe("digits-ipc1").with_library(tiny.library()),
        cost.Shape.of(tiny.digits()),
        stages=("experts",),
    )
    assert found.experts.seconds == found.seconds > 0
    assert found.memory > 10**8
